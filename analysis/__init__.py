"""Think: what is not normal, which incidents that makes, and what caused them."""
