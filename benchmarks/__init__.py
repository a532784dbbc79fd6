"""Ours against the original's algorithm, by `./run bench`."""

import clipcap.torchvision_schemas  # noqa: F401 (mends torchvision before anything imports it)
