"""Tensor models: arrays in, arrays out, computed in dynamic batches."""
