"""HTTP: OpenAI, Open Inference Protocol, health and administration."""
