"""Decoding that looks back at the photo: which of many captions fits it best, and how likely that one is right.

A small language model likes to say what it has often heard. So captions are not taken from the beam alone: they are
chosen among its hypotheses and a number of samples by how near text and photo are to the encoder's two halves, by how
much they agree with what the model says when it is asked many times (minimum Bayes risk, Kumar and Byrne 2004;
consensus among captions, Devlin et al., arXiv 1505.04467), and by the language model's probability. What it says is
judged by samples alone, which stand for the model where a beam's results do not (Eikema and Aziz, arXiv 2005.10283):
those are near to each other whatever is in the photo. The same features, with other weights, tell how likely a caption
is right.

All weights are fitted, by `recipes.reranking`, and stored with the models they were fitted with; beside other models
they would mean nothing.

Legend: C candidates of a photo, E size of an embedding, K directions of the space of embeddings, F features.
"""

import base64
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.encoder import Encoder
from clipcap.fingerprint import same_weights
from clipcap.language_model import LanguageModel
from clipcap.options import DecodingOptions

FORMAT = "clipcap-reranking-2"
# What is known of a candidate. "The samples" are here those that all candidates are compared with.
OF_CAPTION = (
    "log_probability",  # mean of its tokens'
    "similarity",  # cosine of text and photo, each without what all texts and all photos have in common
    "wording",  # how many word sequences it shares with the samples but itself
    "meaning",  # mean cosine to the samples but itself
    "words",  # how many
    "stock",  # how much more often these models say some words of it in a row than people do
    "repetition",  # how much of it are words that it has said before, from 0 to 1
)
# What is known of its photo; all its candidates have it in common.
OF_PHOTO = (
    "samples_log_probability",  # the mean of the samples'
    "samples_similarity",
    "samples_wording",
    "samples_meaning",
    "strangeness",  # logarithm of how far the photo is from those that were learned from
)
FEATURES = OF_CAPTION + OF_PHOTO
LONGEST_SEQUENCE = 4  # words, as in CIDEr
TWICE = re.compile(r"\b(\w+) \1\b", re.IGNORECASE)  # the same word, one after the other

T = TypeVar("T")

log = logging.getLogger(__name__)


class RerankingError(ValueError):
    """A file of weights that cannot be used; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Candidate:
    """A text that was written about a photo, its mean log-probability per token, how many of the samples have it, and
    whether it is whole: neither cut short nor empty."""

    text: str
    log_probability: float
    samples: int = 1
    whole: bool = True

    @property
    def flaw(self) -> int:
        """How bad the text is by itself: 2 if it is not whole, 1 if it says a word twice in a row, else 0."""
        return 2 if not self.whole else int(bool(TWICE.search(self.text)))


@dataclass(frozen=True)
class Judgement:
    """What is made of a candidate.

    place: where it stands among the candidates.
    similarity, confidence: as in `clipcap.captioner.Caption`.
    """

    place: int
    similarity: float
    confidence: float


@dataclass(frozen=True)
class Reranker:
    """What was fitted on photos that nothing was trained on.

    encoder, text, language_model: identities of the models that it was fitted with.
    ways: how candidates are written. The last one samples, and its texts are the samples that all are compared with.
    choice, confidence: the weights of FEATURES; where one is left out it does not count. With `intercept`, `confidence`
        gives the logit of the probability that a caption is right.
    photo_mean, text_mean: (E,) means of the normalised embeddings of photos and texts.
    whitening: (K, E) directions in which photos differ little, divided by how much they do.
    rarity: how much a word counts when wordings are compared, and when it is repeated; the rarest's is that of a word
        which is not in it.
    stock: phrases, and in how many more of a style's captions, as a share of them, these models say them than people.
    notes: how it was fitted, for people.
    """

    encoder: str
    text: str
    language_model: str
    ways: tuple[DecodingOptions, ...]
    choice: Mapping[str, float]
    confidence: Mapping[str, float]
    intercept: float
    photo_mean: Tensor
    text_mean: Tensor
    whitening: Tensor
    rarity: Mapping[str, float]
    stock: Mapping[str, float]
    notes: Mapping[str, Any]

    def misfit(self, encoder: Encoder, language_model: LanguageModel) -> str | None:
        """Why it says nothing about these models' captions, None where it does."""
        for what, needed, loaded in (
            ("encoder", self.encoder, encoder.identity),
            ("text tower of the encoder", self.text, encoder.text_identity),
            ("language model", self.language_model, language_model.identity),
        ):
            if loaded is None or not same_weights(needed, loaded):
                return f"the weights for it were fitted with the {what} {needed}, and {loaded or 'none'} is loaded"
        return None

    def ways_for(self, options: DecodingOptions) -> list[DecodingOptions]:
        """How candidates are written for a request: as fitted, but as long, and with as many beams, as it says."""
        ways = [replace(way, max_length=options.max_length) for way in self.ways]
        size = options.beam_size
        if size is None:
            return ways
        return [replace(way, beam_size=size, captions=size) if way.method == "beam" else way for way in ways]

    def judge(self, photo: Tensor, candidates: Sequence[Candidate], texts: Tensor) -> list[Judgement]:
        """The candidates of one photo, the best first; those with a flaw come last.

        Args:
            photo: (E,) embedding.
            texts: (C, E) embeddings of the candidates' texts.
        """
        table = self.features(photo, candidates, texts)
        scores, confidences = self.scores(table).tolist(), self.confidences(table).tolist()
        similarities = table[:, FEATURES.index("similarity")].tolist()
        order = sorted(range(len(candidates)), key=lambda place: (candidates[place].flaw, -scores[place]))
        return [Judgement(place, similarities[place], confidences[place]) for place in order]

    def scores(self, table: Tensor) -> Tensor:
        """How good each candidate is beside the others of its photo: (C,) of (C, F)."""
        return table @ _weights(self.choice)

    def confidences(self, table: Tensor) -> Tensor:
        """How likely each candidate is right: (C,) of (C, F)."""
        return (self.intercept + table @ _weights(self.confidence)).sigmoid()

    def features(self, photo: Tensor, candidates: Sequence[Candidate], texts: Tensor) -> Tensor:
        """(C, F) float64: FEATURES of the candidates of one photo; the arguments are those of `judge`."""
        seen = F.normalize(photo.double(), dim=-1) - self.photo_mean
        said = F.normalize(F.normalize(texts.double(), dim=-1) - self.text_mean, dim=-1)
        samples = torch.tensor([candidate.samples for candidate in candidates], dtype=torch.float64)
        wordings = [Counter(words_of(candidate.text)) for candidate in candidates]
        own = torch.stack(
            [
                torch.tensor([candidate.log_probability for candidate in candidates], dtype=torch.float64),
                said @ F.normalize(seen, dim=-1),
                _mean_of_others(_shared_wording([c.text for c in candidates], self._weight), samples),
                _mean_of_others(said @ said.T, samples),
                torch.tensor([words.total() for words in wordings], dtype=torch.float64),
                torch.tensor([self._stock(candidate.text) for candidate in candidates], dtype=torch.float64),
                torch.tensor([self._repetition(words) for words in wordings], dtype=torch.float64),
            ],
            dim=1,
        )
        means = samples @ own[:, : len(OF_PHOTO) - 1] / samples.sum().clamp(min=1)
        strangeness = (self.whitening @ seen).square().mean().clamp(min=1e-12).log()
        return torch.cat([own, torch.cat([means, strangeness[None]]).expand(len(own), -1)], dim=1)

    @cached_property
    def _rarest(self) -> float:
        return max(self.rarity.values(), default=1.0)

    def _weight(self, word: str) -> float:
        return self.rarity.get(word, self._rarest)

    def _repetition(self, words: Counter[str]) -> float:
        """The share of a text's words that it has said before, rare ones weighing more: "the" may come often."""
        total = sum(count * self._weight(word) for word, count in words.items())
        return sum((count - 1) * self._weight(word) for word, count in words.items()) / total if total else 0.0

    @cached_property
    def _phrase_lengths(self) -> set[int]:
        return {len(phrase.split()) for phrase in self.stock}

    def _stock(self, text: str) -> float:
        phrases = (phrase for length in self._phrase_lengths for phrase in phrases_of(text, length))
        return max((self.stock.get(phrase, 0.0) for phrase in phrases), default=0.0)

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        content = {
            "format": FORMAT,
            "encoder": self.encoder,
            "text": self.text,
            "language_model": self.language_model,
            "notes": self.notes,
            "ways": [{name: value for name, value in asdict(way).items() if value is not None} for way in self.ways],
            "choice": self.choice,
            "confidence": self.confidence,
            "intercept": self.intercept,
            "photo_mean": _packed(self.photo_mean),
            "text_mean": _packed(self.text_mean),
            "whitening": _packed(self.whitening),
            "rarity": self.rarity,
            "stock": self.stock,
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Reranker":
        """Read what `save` wrote.

        Raises:
            RerankingError: the file is missing, damaged or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RerankingError(f"{path} cannot be read ({error.strerror}); copy all models again") from error
        except (ValueError, RecursionError) as error:
            raise RerankingError(f"{path} is damaged or not valid JSON ({error}); copy it again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise RerankingError(
                f"{path} has format {found!r}, this version reads {FORMAT!r}; fit it again with recipes.reranking"
            )
        try:
            return cls._read(content)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            cause = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise RerankingError(f"{path} cannot be used: {cause}; copy it again, or fit it again") from error

    @classmethod
    def _read(cls, content: Mapping[str, Any]) -> "Reranker":
        read = cls(
            **{name: _text(content[name], name) for name in ("encoder", "text", "language_model")},
            ways=tuple(DecodingOptions(**_object(way, "ways")) for way in _list(content["ways"], "ways")),
            choice=_numbers(content["choice"], "choice", OF_CAPTION),
            confidence=_numbers(content["confidence"], "confidence", FEATURES),
            intercept=_number(content["intercept"], "intercept"),
            photo_mean=_unpacked(content["photo_mean"], "photo_mean", 1),
            text_mean=_unpacked(content["text_mean"], "text_mean", 1),
            whitening=_unpacked(content["whitening"], "whitening", 2),
            rarity=_numbers(content["rarity"], "rarity"),
            stock=_numbers(content["stock"], "stock"),
            notes=_object(content["notes"], "notes"),
        )
        if not read.ways or read.ways[-1].method != "nucleus":
            raise ValueError("the last of ways must be nucleus, whose samples all candidates are compared with")
        if any(way.method == "nucleus" and way.seed is None for way in read.ways):
            raise ValueError("ways must name a seed where they sample, so that captions are repeatable")
        sizes = {read.photo_mean.shape[0], read.text_mean.shape[0], read.whitening.shape[1]}
        if len(sizes) > 1:
            raise ValueError(
                f"photo_mean, text_mean and whitening are of embeddings of different sizes, {sorted(sizes)}"
            )
        return read


def find_reranker(path: Path) -> Reranker | None:
    """What is in the file; None, with a warning, where it cannot be used, because captions come without it too."""
    if not path.is_file():
        return None
    try:
        return Reranker.load(path)
    except RerankingError as error:
        log.warning("captions are taken from beam search without reranking and have no confidence: %s", error)
        return None


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters and without punctuation."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def phrases_of(text: str, length: int) -> list[str]:
    """Every `length` words of a text that follow each other."""
    words = words_of(text)
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]


def _shared_wording(texts: Sequence[str], weight: Callable[[str], float]) -> Tensor:
    """(C, C): how alike texts are by the words and sequences of words they share, from 0 to 1, as CIDEr counts: the
    cosine of their counts, rare ones having more `weight`, in the mean over sequences of one to four words."""
    words = [words_of(text) for text in texts]
    total = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for length in range(1, LONGEST_SEQUENCE + 1):
        counts = [Counter(zip(*(one[start:] for start in range(length)), strict=False)) for one in words]
        places = {sequence: place for place, sequence in enumerate(dict.fromkeys(s for c in counts for s in c))}
        weights = [max(map(weight, sequence)) for sequence in places]
        table = torch.zeros(len(texts), len(places), dtype=torch.float64)
        for row, found in enumerate(counts):  # a row at a time: torch takes microseconds for each number set alone
            table[row, [places[sequence] for sequence in found]] = torch.tensor([*found.values()], dtype=torch.float64)
        table = F.normalize(table * torch.tensor(weights, dtype=torch.float64), dim=1)
        total += table @ table.T
    return total / LONGEST_SEQUENCE


def _mean_of_others(likeness: Tensor, samples: Tensor) -> Tensor:
    """Of each candidate the mean of (C, C) over all samples but itself; `samples` (C,) says how many each text is."""
    itself = samples.clamp(max=1)
    return (likeness @ samples - likeness.diagonal() * itself) / (samples.sum() - itself).clamp(min=1)


def _weights(named: Mapping[str, float]) -> Tensor:
    return torch.tensor([named.get(name, 0.0) for name in FEATURES], dtype=torch.float64)


def _packed(tensor: Tensor) -> dict[str, Any]:
    numbers = tensor.detach().cpu().numpy().astype("<f2")
    return {"shape": list(tensor.shape), "float16": base64.b64encode(numbers.tobytes()).decode("ascii")}


def _unpacked(value: Any, name: str, dimensions: int) -> Tensor:
    stored = _object(value, name)
    shape = [int(_number(size, name)) for size in _list(stored["shape"], name)]
    if len(shape) != dimensions or min(shape) < 1:
        raise ValueError(f"{name} has the shape {shape}")
    data = bytearray(base64.b64decode(_text(stored["float16"], name), validate=True))
    if len(data) != 2 * math.prod(shape):
        raise ValueError(f"{name} has {len(data)} bytes, which its shape {shape} does not ask for")
    tensor = torch.frombuffer(data, dtype=torch.float16).double().view(shape)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} contains values that are not finite (NaN or infinity)")
    return tensor


def _of_kind(kind: type[T] | tuple[type[T], ...], wanted: str) -> Callable[[Any, str], T]:
    def check(value: Any, name: str) -> T:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} must be {wanted}, not {str(value)[:80]!r}")
        return value

    return check


_text = _of_kind(str, "a text")
_list = _of_kind(list, "a list")
_object = _of_kind(dict, "an object")
_plain_number = _of_kind((int, float), "a number")


def _number(value: Any, name: str) -> float:
    number = float(_plain_number(value, name))
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number, not {number}")
    return number


def _numbers(value: Any, name: str, known: Sequence[str] = ()) -> dict[str, float]:
    found = {key: _number(number, f"{name}[{key!r}]") for key, number in _object(value, name).items()}
    if known and (unknown := [key for key in found if key not in known]):
        raise ValueError(f"{name} has {unknown[0]!r}, which is not one of {', '.join(known)}")
    return found
