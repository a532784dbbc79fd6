"""The admin's pages of styles, examples, imports and training runs."""

from training.admin import examples, imports, runs, styles

__all__ = ["examples", "imports", "runs", "styles"]  # which register themselves
