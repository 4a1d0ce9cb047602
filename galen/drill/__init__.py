"""Drills: real faults in a live stack, and what Galen made of them."""
