"""The admin's pages."""

from captioner.admin import captions, drafts, images, operations, versions

__all__ = ["captions", "drafts", "images", "operations", "versions"]  # which register themselves
