"""Measures the inference service beside other Python servers: same model, same client, same run."""
