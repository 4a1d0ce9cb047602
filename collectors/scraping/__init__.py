"""Scraping many targets: discovery, a bounded pool, and the collector that gives what it finds."""
