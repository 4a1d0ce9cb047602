"""Hands: what changes a service or a GPU when healing has decided to."""
