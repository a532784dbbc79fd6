"""How far the prefixes of images differ (ClipCap, section 4). Without torch: the admin's pages show it.

What a prefix says is `LanguageModel.nearest_words`.

Legend: B images, K prefix length, D size of a token embedding.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


def distances(prefixes: FloatArray) -> FloatArray:
    """(B, K, D) -> (B, B): the mean cosine distance of the vectors at the same place, 0 for the same prefix and 1 for
    unrelated ones."""
    vectors = prefixes.astype(np.float32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    similarity: FloatArray = np.einsum("akd,bkd->ab", unit, unit) / prefixes.shape[1]
    return np.maximum(1 - similarity, 0)


def mean_distance(prefixes: FloatArray) -> float:
    """The mean distance of two of B >= 2 different images' prefixes (B, K, D)."""
    apart = distances(prefixes)
    return float(apart[~np.eye(len(apart), dtype=bool)].mean())
