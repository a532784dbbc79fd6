"""How the embedded models were made: run in the order encoder, language_model, mappers."""

import clipcap.torchvision_schemas  # noqa: F401 (repairs torchvision before anything imports it)
