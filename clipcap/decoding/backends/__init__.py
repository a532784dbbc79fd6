"""What runs the language model while a search decodes."""
