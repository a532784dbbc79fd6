"""Sending to addresses that users name."""
