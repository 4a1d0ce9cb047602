"""Labelled public data sets, and how scores are judged on them."""
