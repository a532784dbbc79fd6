import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.evaluation.retrieval import recall_at


def matrix(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


PHOTOS = matrix([1, 0], [0, 1], [1, 1])


def test_recall_counts_the_texts_whose_photo_is_among_the_nearest() -> None:
    # Nearest to the first text are photos 0, 2 and 1, in this order; to the second 1, 2, 0; to the third 2, 1, 0.
    texts = matrix([3, 1], [0, 9], [0.9, 1])
    assert recall_at((1, 2, 3), texts, PHOTOS, [0, 2, 0]) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1})


def test_a_photo_may_have_several_texts_and_another_none() -> None:
    assert recall_at((1,), matrix([1, 0.1], [1, 0]), PHOTOS, [0, 0]) == {1: 1.0}


def test_lengths_of_embeddings_make_no_difference() -> None:
    texts, photos = matrix([3, 1], [1, 4], [5, 6]), PHOTOS * matrix([100], [0.01], [3])
    assert recall_at((1, 2), texts, photos, [0, 1, 2]) == recall_at((1, 2), texts, PHOTOS, [0, 1, 2]) == {1: 1, 2: 1}


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_embeddings_that_tell_nothing_apart_find_nothing(value: float) -> None:
    photos = np.full((20, 4), value, dtype=np.float32)
    assert recall_at((1, 10), photos[:5], photos, range(5)) == {1: 0, 10: 0}


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_recall_grows_with_the_number_of_photos_looked_at_up_to_all(photos: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(photos, 3)).astype(np.float32)
    texts = random.normal(size=(7, 3)).astype(np.float32)
    found = recall_at(range(1, photos + 1), texts, embeddings, random.integers(photos, size=7).tolist())
    assert list(found.values()) == sorted(found.values())
    assert found[photos] == 1
    assert recall_at((1,), embeddings, embeddings, range(photos)) == {1: 1}


@pytest.mark.parametrize(
    ("texts", "of"), [(matrix([1, 0]), []), (matrix([1, 0, 0]), [0]), (np.empty((0, 2), np.float32), [])]
)
def test_what_does_not_fit_together_is_refused(texts: npt.NDArray[np.float32], of: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        recall_at((1,), texts, PHOTOS, of)
