"""How well photos are found by text.

Legend: T texts, N photos, E size of an embedding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def recall_at(
    counts: Sequence[int],
    texts: npt.NDArray[np.float32],
    photos: npt.NDArray[np.float32],
    photo_of_text: Sequence[int],
) -> dict[int, float]:
    """The share of texts whose own photo is among the k nearest by cosine, for each k of `counts`.

    Of photos that are equally near, a text's own counts as the farthest: embeddings that tell nothing apart find
    nothing.

    Args:
        counts: the numbers k.
        texts: (T, E), of any length.
        photos: (N, E), of any length.
        photo_of_text: T rows of `photos`.

    Raises:
        ValueError: there are no texts, or the shapes do not fit together.
    """
    if not len(texts) or len(texts) != len(photo_of_text) or texts.shape[1:] != photos.shape[1:]:
        raise ValueError(
            f"texts {texts.shape}, photos {photos.shape} and {len(photo_of_text)} photos of texts do not fit together"
        )
    similarity = _unit(texts) @ _unit(photos).T  # (T, N)
    own = np.take_along_axis(similarity, np.asarray(photo_of_text)[:, None], axis=1)
    nearer = (~(similarity < own)).sum(axis=1) - 1  # so that a NaN is near, not far
    return {k: float((nearer < k).mean()) for k in counts}


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))
