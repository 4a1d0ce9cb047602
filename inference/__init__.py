"""The bundled inference service; it imports nothing of the rest."""
