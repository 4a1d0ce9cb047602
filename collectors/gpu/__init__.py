"""GPUs: NVML, and a simulated one where there is none."""
