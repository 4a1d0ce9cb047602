"""The bundled demonstration language model: its corpus, its training script and its files."""
