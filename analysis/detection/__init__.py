"""Detection: which series are not normal now."""
