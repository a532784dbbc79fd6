"""How the embedded models are made; models/base/README.md has the order."""

import clipcap.torchvision_schemas  # noqa: F401 (repairs torchvision before anything imports it)
