"""Captions by the models: the engine of a caption worker."""
