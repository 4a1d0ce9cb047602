"""Requests that bring a worker down: suspected at once, tried in a sandbox, quarantined or cleared."""
