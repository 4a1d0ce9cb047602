"""Releases: taking versions into service, watching new ones, and going back by itself."""
