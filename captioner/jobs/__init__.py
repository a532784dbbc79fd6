"""Queued rows, and what wakes those who work on them."""
