"""The series store."""
