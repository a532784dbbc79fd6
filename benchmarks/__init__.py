"""Ours against the original's algorithm, by `./run bench`."""

import clipcap.torchvision_schemas  # noqa: F401 (repairs torchvision before anything imports it)
