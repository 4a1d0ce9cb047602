"""The worker: one spawned process that owns one engine, and what the front needs to run it."""
