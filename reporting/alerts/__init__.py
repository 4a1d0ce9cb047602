"""Alerts: from journal events through routing and the outbox to people."""
