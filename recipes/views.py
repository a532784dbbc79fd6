"""What the encoder makes of the pictures at hand, which may be smaller and compressed more often than the originals
that the data's embeddings are of."""

from pathlib import Path

import torch
from torch import Tensor

from clipcap.encoder import Encoder
from recipes.photos import Photo

PART = 200  # pictures that are embedded between two writes to the disk


def views_at_hand(photos: list[Photo], encoder: Encoder, path: Path) -> dict[str, Tensor]:
    """Embeddings (E,) of the pictures that are there, by name; kept in `path`, and made where that lacks them."""
    known: dict[str, Tensor] = torch.load(path, weights_only=True) if path.exists() else {}
    missing = [p for p in photos if p.name not in known and p.path.is_file()]
    for first in range(0, len(missing), PART):
        part = missing[first : first + PART]
        known |= zip([p.name for p in part], encoder.encode([p.path for p in part]).clone(), strict=True)
        partial = path.with_suffix(".partial")
        torch.save(known, partial)
        partial.replace(path)
        print(f"{first + len(part)} of {len(missing)} pictures embedded", flush=True)
    return known
