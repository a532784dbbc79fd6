"""The mapping networks of the paper."""

import pytest
import torch
from torch.nn import functional as F

from clipcap.mapper import MapperConfig, build_mapper


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_mapper_turns_embeddings_into_prefixes_row_by_row(kind: str) -> None:
    mapper = build_mapper(MapperConfig(kind, embedding_size=8, lm_size=16, prefix_length=5, layers=2))  # type: ignore[arg-type]
    embeddings = torch.randn(3, 8)
    prefixes = mapper(embeddings)
    assert prefixes.shape == (3, 5, 16)
    assert torch.allclose(prefixes[1], mapper(embeddings[1:2])[0], atol=1e-6)


def test_the_papers_sizes_have_the_papers_parameters() -> None:
    mlp = build_mapper(MapperConfig("mlp", embedding_size=512, lm_size=768))
    transformer = build_mapper(MapperConfig("transformer", embedding_size=512, lm_size=768))
    assert sum(p.numel() for p in mlp.parameters()) == 512 * 3840 + 3840 + 3840 * 7680 + 7680  # 31.5 M
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e6) == 42  # the paper says 43 M


def test_normalisation_makes_a_mapper_blind_to_the_embeddings_length() -> None:
    for normalize in (True, False):
        mapper = build_mapper(MapperConfig("mlp", embedding_size=8, lm_size=16, normalize=normalize))
        embeddings = torch.randn(3, 8)
        assert torch.allclose(mapper(embeddings), mapper(7 * embeddings), atol=1e-5) == normalize
        if normalize:
            assert torch.allclose(mapper(embeddings), mapper.project(F.normalize(embeddings, dim=1)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "linear"}, "kind"),
        ({"prefix_length": 0}, "prefix_length"),
        ({"clip_length": -1}, "clip_length"),
        ({"layers": 0}, "layers"),
        ({"heads": 3}, "heads"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"kind": "mlp", "hidden_size": 0}, "hidden_size"),
    ],
)
def test_impossible_sizes_are_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MapperConfig(**({"kind": "transformer", "embedding_size": 8, "lm_size": 16} | wrong))  # type: ignore[arg-type]
