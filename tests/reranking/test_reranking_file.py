"""The file of weights for choosing captions: read as it was written, or refused with its cause."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipcap.captioner import Captioner
from clipcap.decoding.rerank import Candidate, Reranker, RerankingError
from tests.reranking.weights import SIZE, reranker


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    reranker().save(tmp_path / "reranking.json")
    read = Reranker.load(tmp_path / "reranking.json")
    for name, value in vars(reranker()).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(getattr(read, name), value)
        else:
            assert getattr(read, name) == value


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in a good file."""
    path = tmp_path_factory.mktemp("weights") / "reranking.json"
    reranker().save(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_weights_that_are_missing_are_an_error_that_names_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(RerankingError, match=r"nowhere\.json cannot be read.*copy all models again"):
        Reranker.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "clipcap-reranking-9"}, "has format 'clipcap-reranking-9', this version reads"),
        ({"encoder": 3}, "encoder must be a text, not '3'"),
        ({"ways": []}, "the last of ways must be nucleus"),
        ({"ways": [{"method": "nucleus", "seed": 1}, {"method": "beam"}]}, "the last of ways must be nucleus"),
        ({"ways": [{"method": "nucleus"}]}, "ways must name a seed where they sample"),
        ({"ways": [{"method": "magic"}]}, "method must be one of"),
        ({"ways": [{"method": "beam", "heat": 1}]}, "heat"),
        ({"choice": {"luck": 1.0}}, r"choice has 'luck', which is not one of log_probability"),
        ({"choice": {"strangeness": 1.0}}, "choice has 'strangeness'"),
        ({"confidence": {"words": "many"}}, r"confidence\['words'\] must be a number, not 'many'"),
        ({"intercept": float("nan")}, "intercept must be a number, not nan"),
        ({"intercept": True}, "intercept must be a number"),
        ({"photo_mean": {"shape": [3], "float16": "AAAA"}}, "photo_mean has 3 bytes"),
        ({"photo_mean": {"shape": [1], "float16": "AHw="}}, "photo_mean contains values that are not finite"),
        ({"text_mean": {"shape": [2], "float16": "AAAAAA=="}}, "embeddings of different sizes"),
        ({"whitening": {"shape": [16], "float16": "AAAA"}}, r"whitening has the shape \[16\]"),
        ({"whitening": {"shape": [0, 16], "float16": ""}}, "whitening has the shape"),
    ],
)
def test_a_file_that_is_no_good_is_an_error_that_names_the_cause(
    content: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "reranking.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(RerankingError, match=message):
        Reranker.load(path)


def test_models_with_weights_that_are_no_good_caption_without_them(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in models.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "reranking.json").unlink()
    assert Captioner.load(tmp_path, device="cpu").reranker is None
    assert not caplog.records
    (tmp_path / "reranking.json").write_text("{")
    assert Captioner.load(tmp_path, device="cpu").reranker is None
    assert "reranking.json is damaged" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    content: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    changed = copy.deepcopy(content)
    place: Any = changed
    while isinstance(place, dict | list) and place:
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.sampled_from(range(len(place)))
        )
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    path = tmp_path / "reranking.json"
    path.write_text(json.dumps(changed))
    try:
        read = Reranker.load(path)
    except RerankingError:
        return
    read.judge(torch.ones(SIZE), [Candidate("a dog", -1.0)], torch.ones(1, SIZE))


@given(raw=st.binary(max_size=40))
def test_bytes_that_are_no_file_of_ours_are_refused(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "reranking.json"
    path.write_bytes(raw)
    with pytest.raises(RerankingError):
        Reranker.load(path)
