"""How the embedded models were made: run in the order encoder, language_model, mappers."""

import clipcap  # noqa: F401 (mends torchvision before anything imports it)
