"""Image towers whose products are bfloat16 or 8-bit integers, beside the same in float32."""

from pathlib import Path

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from clipcap import fast_tower, int8
from clipcap.bfloat16 import in_bfloat16
from clipcap.encoder import Encoder
from clipcap.fast_tower import SAME, fastest, likeness
from clipcap.int8 import Linear, in_int8

SIZE = 224  # pixels of the tiny encoder's input


def cpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fast_tower, "multiplies_bfloat16", lambda device: kind == "bfloat16")
    monkeypatch.setattr(fast_tower, "multiplies_int8", lambda: kind == "int8")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers of tests are narrow."""
    monkeypatch.setattr(int8, "WIDE", 1)


@pytest.fixture(params=["bfloat16", "int8"])
def capable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CPU that multiplies so; where it does not torch gets to the same numbers, slowly."""
    cpu(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def exact(folder: Path) -> Encoder:
    return Encoder.load(f"local-dir:{folder}", device="cpu", dtype="float32")


def test_a_cpu_that_is_faster_so_gets_the_embeddings_of_float32(
    capable: str, tiny_encoder_dir: Path, pixels: Tensor
) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    kinds = {tensor.dtype for tensor in encoder.tower.state_dict().values() if tensor.dtype != torch.int64}
    assert kinds == {torch.float32, getattr(torch, capable)}, "norms and embeddings stay in float32"
    got, wanted = encoder.encode_pixels(pixels), exact(tiny_encoder_dir).encode_pixels(pixels)
    assert got.dtype == torch.float32
    assert float(torch.cosine_similarity(got, wanted).min()) > SAME
    assert not torch.equal(got, wanted), "it was float32 after all"


@pytest.mark.usefixtures("capable")
def test_a_picture_has_the_same_embedding_alone_and_beside_others(tiny_encoder_dir: Path, pixels: Tensor) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    alone = torch.cat([encoder.encode_pixels(picture[None]) for picture in pixels])
    assert torch.equal(alone, encoder.encode_pixels(pixels))


class Delicate(nn.Module):
    """What is left of large numbers that nearly cancel out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.linear.weight.data = torch.tensor([[1.0, -1.001, 0], [1.003, -1, 0], [0, 1.0, -0.999]])

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.linear(pixels.mean((2, 3)) * 0.001 + 100)
        return out


def test_a_tower_that_other_arithmetic_changes_stays_in_float32(capable: str) -> None:
    tower = Delicate().requires_grad_(False)
    assert fastest(tower, (SIZE, SIZE)) is tower
    twin = {"bfloat16": in_bfloat16, "int8": in_int8}[capable](tower)
    assert likeness(twin, tower, (SIZE, SIZE)) < SAME


@pytest.mark.usefixtures("capable")
def test_a_tower_that_gives_no_numbers_is_not_taken_for_like_itself() -> None:
    linear = nn.Linear(3 * SIZE * SIZE, 4).requires_grad_(False)
    linear.weight.data.fill_(torch.nan)
    tower = nn.Sequential(nn.Flatten(), linear)
    assert fastest(tower, (SIZE, SIZE)) is tower


@pytest.mark.usefixtures("capable")
def test_a_resnet_whose_attention_pool_reads_the_weights_of_its_layers_stays_in_float32() -> None:
    tower = ModifiedResNet((1, 1, 1, 1), output_dim=8, heads=2, image_size=64, width=8).eval().requires_grad_(False)
    assert fastest(tower, (64, 64)) is tower


def test_a_cpu_without_instructions_for_either_stays_with_float32(
    tiny_encoder_dir: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu(monkeypatch, "neither")
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    assert torch.equal(encoder.encode_pixels(pixels), exact(tiny_encoder_dir).encode_pixels(pixels))


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 7, 64), (197, 768)])
@pytest.mark.parametrize("bias", [True, False])
def test_eight_bits_twice_hold_activations_with_outliers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(shape[-1], 10, bias=bias).requires_grad_(False)
    rounded = Linear(linear.weight, linear.bias)
    linear.weight.copy_((rounded.weight * rounded.scale).t())  # what 8 bits hold of the weights, to look at the rest
    x = torch.randn(shape)
    x[..., 0] = 300.0
    assert torch.allclose(rounded(x), linear(x), rtol=0, atol=300 / 127 / 254)
    assert torch.allclose(rounded(torch.zeros(shape)), linear(torch.zeros(shape))), "all zeros have no largest"
    assert rounded(torch.zeros(0, *shape)).shape == linear(torch.zeros(0, *shape)).shape


def test_the_twin_of_8_bits_shares_what_stays_in_float32(tiny_encoder_dir: Path) -> None:
    tower = exact(tiny_encoder_dir).tower
    before = {name: parameter.clone() for name, parameter in tower.named_parameters()}
    twin = in_int8(tower)
    addresses = {parameter.data_ptr() for parameter in tower.parameters()}
    assert {parameter.data_ptr() for parameter in twin.parameters()} < addresses
    assert all(torch.equal(parameter, before[name]) for name, parameter in tower.named_parameters())


def test_narrow_layers_which_8_bits_make_slower_stay_in_float32(
    tiny_encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "WIDE", 64)
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).requires_grad_(False)
    assert [type(layer) for layer in in_int8(layers).children()] == [Linear, nn.Linear]
    assert all(tensor.dtype != torch.int8 for tensor in in_int8(exact(tiny_encoder_dir).tower).state_dict().values())
