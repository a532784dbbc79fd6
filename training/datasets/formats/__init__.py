"""The formats that captions come in, a module each."""
