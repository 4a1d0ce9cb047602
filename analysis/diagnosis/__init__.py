"""Diagnosis: which cause explains what is seen, with evidence for and against."""
