"""The admin's pages of styles, examples, imports, training runs and base models."""

from training.admin import base_models, examples, imports, runs, styles

__all__ = ["base_models", "examples", "imports", "runs", "styles"]  # which register themselves
