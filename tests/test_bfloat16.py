"""Image towers whose products are bfloat16, beside the same in float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipcap import bfloat16
from clipcap.encoder import Encoder

SIZE = 224  # pixels of the tiny encoder's input


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bfloat16; where it does not torch gets to the same numbers, slowly."""
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda device: True)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def exact(folder: Path) -> Encoder:
    return Encoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")


@pytest.mark.usefixtures("capable")
def test_a_cpu_that_multiplies_bfloat16_does_and_gets_the_embeddings_of_float32(
    tiny_encoder_dir: Path, pixels: Tensor
) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    kinds = {parameter.dtype for parameter in encoder.tower.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}, "products in bfloat16, norms and embeddings in float32"
    got, wanted = encoder.encode_pixels(pixels), exact(tiny_encoder_dir).encode_pixels(pixels)
    assert got.dtype == torch.float32
    assert float(torch.cosine_similarity(got, wanted).min()) > bfloat16.SAME
    assert not torch.equal(got, wanted), "it was float32 after all"


@pytest.mark.usefixtures("capable")
def test_a_picture_has_the_same_embedding_alone_and_beside_others(tiny_encoder_dir: Path, pixels: Tensor) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    alone = torch.cat([encoder.encode_pixels(picture[None]) for picture in pixels])
    assert torch.equal(alone, encoder.encode_pixels(pixels))


@pytest.mark.usefixtures("capable")
def test_a_tower_that_bfloat16_changes_stays_in_float32() -> None:
    class Delicate(nn.Module):
        """What is left of large numbers that nearly cancel out."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3, bias=False)
            self.linear.weight.data = torch.tensor([[1.0, -1.001, 0], [1.003, -1, 0], [0, 1.0, -0.999]])

        def forward(self, pixels: Tensor) -> Tensor:
            out: Tensor = self.linear(pixels.mean((2, 3)) * 0.001 + 100)
            return out

    tower = Delicate()
    assert bfloat16.fastest(tower, (SIZE, SIZE)) is tower
    assert bfloat16.likeness(bfloat16.in_bfloat16(tower), tower, (SIZE, SIZE)) < bfloat16.SAME


@pytest.mark.usefixtures("capable")
def test_a_tower_that_gives_no_numbers_is_not_taken_for_like_itself() -> None:
    linear = nn.Linear(3 * SIZE * SIZE, 4)
    linear.weight.data.fill_(torch.nan)
    tower = nn.Sequential(nn.Flatten(), linear)
    assert bfloat16.fastest(tower, (SIZE, SIZE)) is tower


def test_a_cpu_without_instructions_for_it_stays_with_float32(
    tiny_encoder_dir: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda device: False)
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    assert torch.equal(encoder.encode_pixels(pixels), exact(tiny_encoder_dir).encode_pixels(pixels))
