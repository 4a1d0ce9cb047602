"""Engines: what turns token ids and a key-value cache into logits."""
