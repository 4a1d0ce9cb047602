"""Sense: where numbers come from, and the store that keeps them."""
