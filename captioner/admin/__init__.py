"""The admin's pages."""

from captioner.admin import captions, drafts, images, operations, styles, versions

__all__ = ["captions", "drafts", "images", "operations", "styles", "versions"]  # which register themselves
