"""A mapper in a file: our own format, and the authors'."""

from pathlib import Path

from clipcap.checkpoint.base import CheckpointError, MapperCheckpoint, as_trained
from clipcap.checkpoint.native import read_native, save_mapper
from clipcap.checkpoint.original import OriginalCheckpoint, gpt2_sizes, is_original, read_original

__all__ = [
    "CheckpointError",
    "MapperCheckpoint",
    "OriginalCheckpoint",
    "as_trained",
    "gpt2_sizes",
    "is_original",
    "load_mapper",
    "read_original",
    "save_mapper",
]


def load_mapper(
    path: Path, *, lm_size: int | None = None, normalize: bool | None = None, heads: int | None = None
) -> MapperCheckpoint:
    """Read a mapper in our format, or in the authors' (`.pt`), in float32 on the CPU, ready for inference, with the
    language-model weights that came to it.

    Args:
        lm_size: D of the LM it is wanted for, see `read_original`.
        normalize: whether it was trained on embeddings divided by their L2 norm. Our format says so itself; of the
            authors' it is guessed unless given, see `read_original`.
        heads: of the mapping Transformer. Our format says so itself; in the authors' it is 8 unless given.

    Raises:
        CheckpointError: the file is missing, damaged, cut short, or something else than a mapper, or it says the
            contrary of `normalize` or `heads`.
    """
    if is_original(path):
        original = read_original(path, lm_size=lm_size, normalize=normalize, heads=heads)
        notes = {"format": "the authors' .pt", "normalize": "guessed" if normalize is None else "given"}
        return MapperCheckpoint(original.mapper, None, None, notes, original.weights)
    checkpoint = read_native(path)
    recorded = checkpoint.mapper.config.normalize
    if normalize not in (None, recorded):
        raise CheckpointError(
            f"mapper file {path} records that it was trained on embeddings {as_trained(recorded)}; do not override it"
        )
    if heads not in (None, checkpoint.mapper.config.heads):
        raise CheckpointError(
            f"mapper file {path} records {checkpoint.mapper.config.heads} attention heads; do not override it"
        )
    return checkpoint
