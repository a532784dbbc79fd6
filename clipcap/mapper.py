"""Mapping networks: from a CLIP embedding to the prefix of a language model (ClipCap, section 3.3).

Legend: B images, E size of the CLIP embedding, K prefix length, C clip length, D size of the LM's token
embedding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Far beyond any mapper's, so that a hostile header costs no time.
MAX_LAYERS, MAX_SIZE = 256, 2**24


@dataclass(frozen=True)
class MapperConfig:
    """Everything needed to build a mapper, and so what its checkpoint carries.

    `embedding_size` (E) and `lm_size` (D) are given by the encoder and the LM. `normalize` divides each embedding
    by its L2 norm first; the authors' code does so only behind a flag, so it belongs to the mapper. `hidden_size`
    is the MLP's hidden layer, K * D // 2 unless given; `clip_length`, `layers`, `heads` and `mlp_ratio` are the
    Transformer's. `stop_text` is what ends this mapper's captions: nothing for the LM's end-of-text token, "." for
    mappers of the authors' code, which never saw that token.

    Raises:
        ValueError: a size that is not positive, a width that the heads do not divide, or an unknown kind.
    """

    kind: Literal["mlp", "transformer"]
    embedding_size: int
    lm_size: int
    prefix_length: int = 10
    normalize: bool = False
    hidden_size: int | None = None
    clip_length: int = 10
    layers: int = 8
    heads: int = 8
    mlp_ratio: float = 2.0
    stop_text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "transformer"):
            raise ValueError(f"mapper kind {self.kind!r} is not one of mlp, transformer")
        sizes = ["embedding_size", "lm_size", "prefix_length"]
        if self.kind == "transformer":
            sizes += ["clip_length", "layers", "heads", "mlp_ratio"]
        elif self.hidden_size is not None:
            sizes.append("hidden_size")
        for name in sizes:
            value, limit = getattr(self, name), MAX_LAYERS if name == "layers" else MAX_SIZE
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole or (name == "mlp_ratio" and isinstance(value, float))) or not 0 < value <= limit:
                raise ValueError(f"mapper {name} must be a positive number of at most {limit:,}, not {value!r}")
        if not isinstance(self.stop_text, str):
            raise ValueError(f"mapper stop_text must be a text, not {self.stop_text!r}")
        if self.kind == "transformer" and self.lm_size % self.heads:
            raise ValueError(f"mapper heads ({self.heads}) must divide the language model's size ({self.lm_size})")


class Mapper(nn.Module):
    """Base of the two kinds; subclasses implement `project`."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, E) CLIP embeddings, as the encoder gives them -> (B, K, D) prefixes."""
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return self.project(embeddings)

    @property
    def first_layer(self) -> nn.Linear:
        """The layer that reads the embedding."""
        raise NotImplementedError

    def project(self, embeddings: Tensor) -> Tensor:
        """(B, E) embeddings, normalized where the mapper asks for it -> (B, K, D) prefixes."""
        raise NotImplementedError


class MLPMapper(Mapper):
    """One tanh layer; the choice of the paper when the LM is fine-tuned too."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__(config)
        out = config.prefix_length * config.lm_size
        hidden = config.hidden_size or out // 2
        self.hidden = nn.Linear(config.embedding_size, hidden)
        self.out = nn.Linear(hidden, out)

    @property
    def first_layer(self) -> nn.Linear:
        """The layer that reads the embedding."""
        return self.hidden

    def project(self, embeddings: Tensor) -> Tensor:
        """(B, E) embeddings -> (B, K, D) prefixes."""
        prefix: Tensor = self.out(torch.tanh(self.hidden(embeddings)))
        return prefix.view(-1, self.config.prefix_length, self.config.lm_size)


class TransformerMapper(Mapper):
    """A Transformer over C tokens made of the embedding and K learned constants; the constants' outputs are the
    prefix. The choice of the paper when the LM stays frozen."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.embedding_size, config.clip_length * config.lm_size)
        # Small, so that from the first step on the prefix is mostly what the image says.
        self.constant = nn.Parameter(0.03 * torch.randn(config.prefix_length, config.lm_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @property
    def first_layer(self) -> nn.Linear:
        """The layer that reads the embedding."""
        return self.linear

    def project(self, embeddings: Tensor) -> Tensor:
        """(B, E) embeddings -> (B, K, D) prefixes."""
        clip = self.linear(embeddings).view(-1, self.config.clip_length, self.config.lm_size)
        x = torch.cat([clip, self.constant.expand(len(clip), -1, -1)], dim=1)  # (B, C + K, D)
        for block in self.blocks:
            x = block(x)
        return x[:, self.config.clip_length :]


class Block(nn.Module):
    """A pre-norm Transformer layer without biases on queries, keys and values."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        size, hidden = config.lm_size, int(config.lm_size * config.mlp_ratio)
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.queries = nn.Linear(size, size, bias=False)
        self.keys_values = nn.Linear(size, 2 * size, bias=False)
        self.merge = nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        h = self.norm1(x)
        q = self.queries(h).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
        k, v = self.keys_values(h).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.relu(self.up(self.norm2(x))))
        return out


def build_mapper(config: MapperConfig) -> Mapper:
    """A mapper of `config` with random weights."""
    return MLPMapper(config) if config.kind == "mlp" else TransformerMapper(config)
