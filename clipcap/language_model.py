"""The language model that writes captions: loaded once, shared by every mapper, and frozen here.

Legend: B rows, T tokens, S cached tokens and T together, D size of a token embedding, V vocabulary.
"""

from __future__ import annotations

import clipcap.torchvision_schemas  # noqa: F401 (before transformers is imported)

# isort: split
import copy
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from clipcap.decoding.backends.eager import EagerBackend
from clipcap.device import pick_device, pick_dtype
from clipcap.fingerprint import file_sha256
from clipcap.tensor_file import unlike

LOCAL_PREFIX = "local-dir:"

# Loading is quick, and what goes wrong is raised; the bars and remarks would only mix with the caller's output.
logging.set_verbosity_error()
logging.disable_progress_bar()


class LanguageModelError(ValueError):
    """A language model that cannot be loaded; the message names the cause and the remedy."""


class LanguageModel:
    """A frozen causal LM with its tokenizer.

    `identity` is what a mapper's checkpoint records of it: the name of a published model, or a local folder's
    name with the beginning of its weights' SHA-256. `size` is D, `max_length` the longest sequence in tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: str) -> None:
        self.model = freeze(model)
        self.tokenizer = tokenizer
        self.identity = identity
        self.size = self.embed(torch.zeros(1, 1, dtype=torch.long, device=model.device)).shape[-1]
        self.vocabulary: int = model.config.vocab_size
        self.max_length = _max_length(model.config)
        self.device, self.dtype = model.device, model.dtype
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise LanguageModelError(
                f"the tokenizer of {identity} has no end-of-text token; a caption needs one to end"
            )
        self.end_id = end

    @classmethod
    def load(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
        """Load a causal LM by its name on the model hub (`gpt2`) or from a folder (`local-dir:PATH`).

        Raises:
            LanguageModelError: no such folder or model, damaged weights, or no network to fetch them.
            ValueError: the device or dtype cannot be used here.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        source, identity = name, name
        if name.startswith(LOCAL_PREFIX):
            folder = Path(name.removeprefix(LOCAL_PREFIX))
            source, identity = str(folder), _local_identity(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=precision, output_loading_info=True)
        except Exception as error:  # transformers raises OSError, ValueError, SafetensorError and more
            cause = str(error).strip().splitlines()[0]
            raise LanguageModelError(
                f"language model {name!r} cannot be loaded: {cause}. Check the name; a published model is fetched from "
                f"its hub once and needs the network for that; a folder (local-dir:PATH) needs a complete config.json, "
                f"model.safetensors and tokenizer.json."
            ) from error
        model, loading = loaded
        # transformers would fill what is missing at random, differently in each process.
        if unfilled := sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"]):
            raise LanguageModelError(
                f"language model {name!r} is incomplete: its weights lack {unfilled[0]}"
                f"{f' and {len(unfilled) - 1} more' if unfilled[1:] else ''}; copy or export it again"
            )
        lm = cls(nn.Module.to(model, where), tokenizer, identity)
        if reason := lm.misreads():
            raise LanguageModelError(
                f"language model {name!r} cannot be decoded correctly: {reason}. Choose one that attends to everything "
                f"written so far, such as GPT-2, OPT or Llama; recurrent models, such as Mamba or RWKV, do not"
            )
        return lm

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its parameters by name; those that are tied, as GPT-2's first and last layer are, once."""
        return dict(self.model.named_parameters())

    def has(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are its own weights, but for being rounded to the type that they are loaded in."""
        own = self.weights
        return own.keys() == weights.keys() and all(
            tensor.shape == own[name].shape and torch.equal(tensor.to(own[name]), own[name])
            for name, tensor in weights.items()
        )

    def with_weights(self, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> LanguageModel:
        """The same model and tokenizer with other weights, frozen, on the same device.

        Args:
            dtype: of the weights; that of this model's unless given.

        Raises:
            LanguageModelError: they are those of another model.
        """
        own = self.weights
        if problem := unlike(own, weights):
            raise LanguageModelError(f"the weights are not those of a model like {self.identity}: {problem}")
        # What is copied deeply is looked up here first. Hooks are adapters of a batch that another thread decodes.
        filled: dict[int, Any] = {id(module._forward_hooks): OrderedDict() for module in self.model.modules()}
        for name, parameter in self.model.named_parameters():
            filled[id(parameter)] = nn.Parameter(
                weights[name].detach().to(parameter.device, dtype or parameter.dtype, copy=True), requires_grad=False
            )
        return LanguageModel(copy.deepcopy(self.model, filled), self.tokenizer, self.identity)

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def cache_bytes(self) -> int:
        """What keys and values of one position take."""
        config = self.model.config
        key_heads = getattr(config, "num_key_value_heads", None) or self.heads
        width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        return 2 * self.layers * int(key_heads * width) * self.dtype.itemsize

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; what is spelled like a special token is text too, and none is added."""
        return _encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` up to the end-of-text token, without special tokens and outer blanks."""
        text = self.tokenizer.decode(
            list(takewhile(lambda token: token != self.end_id, ids)),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return str(text).strip()

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, D)"""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def logits(
        self,
        embedded: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: DynamicCache | None = None,
        keep: int = 0,
    ) -> Tensor:
        """One pass of the model.

        Args:
            embedded: (B, T, D) input embeddings.
            mask: (B, S) with 0 for padding, or (B, 1, T, S) additive; none where nothing is padded.
            positions: (B, T) positions; counted from the cache's length where none are given.
            cache: keys and values of earlier tokens, extended in place.
            keep: logits of the last `keep` positions only, 0 for all.

        Returns:
            (B, T or keep, V)
        """
        out: Tensor = self.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        ).logits
        return out

    @torch.inference_mode()
    def misreads(self) -> str | None:
        """Why captions by this model would be wrong, None where they would not, by trial: whether two texts that are
        given as prefixes and go on token by token, in one batch and changing places, get the logits that the model
        itself gives them when it reads each at once.

        Some models keep what they have read elsewhere than in the cache, read tokens in another way than their
        embeddings, or look ahead.
        """
        steps, begins = 3, (5, 3)
        seeded = torch.Generator().manual_seed(0)
        texts = [torch.randint(self.vocabulary, (begin + steps,), generator=seeded).to(self.device) for begin in begins]
        order, swapped = [0, 1], torch.tensor([1, 0], device=self.device)
        try:
            own = [self.model(input_ids=text[None]).logits[0].float() for text in texts]  # (T, V) each
            generation = EagerBackend(self).start(
                [self.embed(text[None, :begin])[0] for text, begin in zip(texts, begins, strict=True)]
            )
            for step in range(steps + 1):
                if step:
                    order.reverse()
                    tokens = torch.stack([texts[row][begins[row] + step - 1] for row in order])
                    generation.advance(swapped, tokens)
                for row, logits in zip(order, generation.logits, strict=True):
                    if not self._same(logits, own[row][begins[row] + step - 1]):
                        return "its output depends on whether it is read token by token or at once"
        except Exception as error:  # each make of model has its own for what it cannot take
            said = str(error).strip().splitlines()
            return f"it does not support prefixes, masks and a cache ({said[0] if said else type(error).__name__})"
        return None

    def _same(self, logits: Tensor, others: Tensor) -> bool:
        """Whether (V,) logits differ by no more than rounding.

        Their means do not count: they may be so large (GPT-2's are about -100) that bfloat16 rounds all else away.
        """
        one, other = logits - logits.mean(), others - others.mean()
        rounding = 0.005 if self.dtype == torch.float32 else 0.15  # of their length
        return bool((one - other).norm() <= rounding * other.norm())

    @cached_property
    @torch.inference_mode()
    def heeds_masks(self) -> bool:
        """Whether a (B, 1, T, S) mask and positions decide what a token sees and where it stands, by trial: whether a
        text says the same behind a prefix and behind a prefix and another text that is masked.

        So it is in most models. ALiBi counts distances on its own, a sliding window is forgotten where a mask is
        given, and some models refuse such masks.
        """
        text, other = (min(count, self.max_length - 8) for count in (12, 80))
        size = 8 + other + text
        x = torch.randn(1, size, self.size, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        x *= self.embed(torch.arange(min(100, self.vocabulary), device=self.device)[None]).std()
        allowed = torch.ones(size, size, dtype=torch.bool).tril()
        allowed[-text:, 8:-text] = False
        mask = torch.zeros(1, 1, size, size).masked_fill(~allowed, torch.finfo(self.dtype).min)
        positions = torch.cat([torch.arange(8 + other), torch.arange(8, 8 + text)])[None]
        with torch.autocast(self.device.type, enabled=False):
            alone = self.logits(torch.cat([x[:, :8], x[:, -text:]], dim=1), keep=1).float()
            try:
                behind = self.logits(
                    x, mask=mask.to(self.device, self.dtype), positions=positions.to(self.device), keep=1
                ).float()
            except Exception:  # each make of model has its own for a mask that it cannot take
                return False
        return self._same(behind.flatten(), alone.flatten())

    @torch.inference_mode()
    def nearest_words(self, vectors: Tensor, count: int = 5) -> list[list[tuple[str, float]]]:
        """What (N, D) vectors of a prefix say: of each, the `count` tokens whose embeddings are nearest, the nearest
        first, with their cosine similarity (ClipCap, section 4).

        The paper's warning holds: with a frozen LM they are hardly readable, because the mapper is free to steer it by
        directions that are not words. They are a look at the mechanism, not an explanation of a caption.
        """
        vocabulary = self.embed(torch.arange(self.vocabulary, device=self.device)[None])[0].float()  # (V, D)
        similarity = F.normalize(vectors.to(self.device).float(), dim=-1) @ F.normalize(vocabulary, dim=-1).T  # (N, V)
        best, tokens = similarity.topk(min(count, len(vocabulary)), dim=-1)
        return [
            [(str(self.tokenizer.decode([token])), round(value, 4)) for token, value in zip(ids, values, strict=True)]
            for ids, values in zip(tokens.tolist(), best.tolist(), strict=True)
        ]

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of every parameter and buffer: the proof that nothing trained the LM."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_tokenizer(name: str) -> tuple[Callable[[str], list[int]], int]:
    """A model's `encode` and `max_length`, without its weights.

    Args:
        name: as in `LanguageModel.load`.

    Raises:
        LanguageModelError: there is no such model, or no network to fetch it.
    """
    source = name.removeprefix(LOCAL_PREFIX)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
    except Exception as error:  # as above
        raise LanguageModelError(
            f"the tokenizer of language model {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    return partial(_encode, tokenizer), _max_length(config)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def _max_length(config: PreTrainedConfig) -> int:
    # Without learned positions (ALiBi) there is no bound.
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The one place that freezes the LM: no gradients for its parameters, no dropout, and no way back to training.

    Gradients still flow through it to the prefix.
    """
    model.eval().requires_grad_(False)
    return model


def _local_identity(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise LanguageModelError(
            f"language model folder {str(folder)!r} does not exist or has no *.safetensors file; "
            f"give a folder written by save_pretrained"
        )
    sums = "".join(file_sha256(path) for path in weights)
    digest = sums if len(weights) == 1 else hashlib.sha256(sums.encode()).hexdigest()
    return f"{folder.resolve().name}@{digest[:16]}"
