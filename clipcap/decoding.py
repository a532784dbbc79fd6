"""From prefixes to captions: batched greedy, beam and nucleus decoding with a KV cache.

The rows of a batch are independent: they may come from different mappers, differ in prefix length and in the token
that ends them, and each gets what it would get alone. Shorter prefixes are padded on the left, and a row leaves the
batch with its last unfinished hypothesis, so the LM never computes what nobody reads. Several ways of decoding share
a batch, and the one pass over its prefixes.

Beam search keeps the hypotheses with the best mean log-probability per token, as the authors' code does. Nucleus
sampling is Holtzman et al., arXiv 1904.09751.

Legend: B rows, W beams, K prefix length, D size of a token embedding, V vocabulary, L live hypotheses.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before transformers is imported)

# isort: split
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from clipcap.language_model import Generation, LanguageModel
from clipcap.options import DecodingOptions


@dataclass(frozen=True)
class Hypothesis:
    """Tokens as generated, the one that ended them included, and their mean log-probability per token."""

    tokens: tuple[int, ...]
    log_probability: float


def decode(
    lm: LanguageModel,
    prefixes: Sequence[Tensor],
    options: DecodingOptions,
    stop_ids: Sequence[int],
    between: Callable[[], object] = lambda: None,
) -> list[list[Hypothesis]]:
    """Captions for a batch of prefixes over one LM.

    Args:
        lm: the frozen language model.
        prefixes: B prefixes, (K, D) each; K may differ from row to row.
        options: the same for every row.
        stop_ids: B tokens, each ending the captions of its row.
        between: called between two tokens.

    Returns:
        `options.captions` hypotheses a row, best first.

    Raises:
        ValueError: a prefix and `max_length` together do not fit into the LM, or more beams than it has tokens.
    """
    return decode_together(lm, prefixes, [options], stop_ids, between)


@torch.inference_mode()
def decode_together(
    lm: LanguageModel,
    prefixes: Sequence[Tensor],
    ways: Sequence[DecodingOptions],
    stop_ids: Sequence[int],
    between: Callable[[], object] = lambda: None,
) -> list[list[Hypothesis]]:
    """What `decode` answers to each of `ways`, with as many passes of the LM as the longest of them needs.

    Returns:
        Of each row the hypotheses of the first way, then those of the second, and so on.

    Raises:
        ValueError: as `decode` does.
    """
    if not prefixes:
        return []
    longest = max(len(prefix) for prefix in prefixes)
    for way in ways:
        if longest + way.max_length > lm.max_length:
            raise ValueError(
                f"max_length must be at most {lm.max_length - longest}: the prefix takes {longest} of the "
                f"{lm.max_length} positions of language model {lm.identity}"
            )
        if way.method == "beam" and (way.beam_size or 5) > lm.vocabulary:
            raise ValueError(f"beam_size must be at most {lm.vocabulary}, the tokens that {lm.identity} knows")
    generation = Generation(lm, prefixes)
    searches: list[_Search] = []
    for way in ways:
        kind = _BeamSearch if way.method == "beam" else _Separate
        searches.append(kind(way, stop_ids, generation.logits))
    starts = [0] * len(searches)  # each search's part of the LM's batch; before they part, each row is one hypothesis
    while any(len(search.tokens) for search in searches):
        between()
        generation.advance(
            torch.cat([start + search.sources for start, search in zip(starts, searches, strict=True)]),
            torch.cat([search.tokens for search in searches]),
        )
        sizes = [len(search.tokens) for search in searches]
        starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        for search, part in zip(searches, generation.logits.split(sizes), strict=True):
            if len(part):
                search.go_on(part)
    return [[h for answers in row for h in answers] for row in zip(*(s.answers() for s in searches), strict=True)]


class _Search(Protocol):
    """One way of decoding all rows: what it has written so far, and what it wants the LM to go on with."""

    sources: Tensor  # (L,) whom each live hypothesis follows: its place among the last logits
    tokens: Tensor  # (L,) its newest token; none is left when the search is over

    def go_on(self, logits: Tensor) -> None:
        """Choose the next tokens by (L, V)."""

    def answers(self) -> list[list[Hypothesis]]:
        """`options.captions` hypotheses of each row, best first."""


class _BeamSearch:
    def __init__(self, options: DecodingOptions, stop_ids: Sequence[int], logits: Tensor) -> None:
        self.count, self.width, self.limit = options.captions, options.beam_size or 5, options.max_length
        self.device = logits.device
        self.stop_ids = torch.tensor(stop_ids, device=self.device)[:, None]
        self.scores, last = logits.log_softmax(-1).topk(self.width)  # (B, W) summed log-probabilities, newest tokens
        self.written = torch.zeros(*last.shape, self.limit, dtype=torch.long, device=self.device)
        self.written[:, :, 0] = last
        self.lengths = torch.ones_like(self.scores)
        self.stopped = last == self.stop_ids
        self.steps = 1
        self._aim(last, torch.arange(len(last), device=self.device)[:, None].expand(-1, self.width))

    def _aim(self, last: Tensor, sources: Tensor) -> None:
        """Go on with the hypotheses that have not stopped, of (B, W) newest tokens and places."""
        open_ = ~self.stopped if self.steps < self.limit else torch.zeros_like(self.stopped)
        self.row, self.beam = open_.nonzero().T  # (L,) each: what the LM still computes
        self.sources, self.tokens = sources[self.row, self.beam], last[self.row, self.beam]

    def go_on(self, logits: Tensor) -> None:
        rows, width, device = len(self.scores), self.width, self.device
        row, beam = self.row, self.beam
        # A hypothesis can be followed by any token, but only its best W can be among its row's best W. A stopped
        # one has a single successor, itself.
        best, choice = logits.topk(width)
        added = best - logits.logsumexp(-1, keepdim=True)
        totals = torch.full((rows, width, width), -torch.inf, device=device)
        totals[:, :, 0] = self.scores
        choices = torch.zeros(rows, width, width, dtype=torch.long, device=device)
        totals[row, beam] = self.scores[row, beam, None] + added
        choices[row, beam] = choice
        grown = self.lengths + (~self.stopped)
        means, picked = (totals / grown[:, :, None]).view(rows, -1).topk(width)  # (B, W)
        parent = picked // width
        unfinished = (~self.stopped).any(1)[:, None]  # rows that have all they need stay as they are
        parent = torch.where(unfinished, parent, torch.arange(width, device=device))
        kept = self.stopped.gather(1, parent)
        last = torch.where(kept, 0, choices.view(rows, -1).gather(1, picked))
        self.lengths = grown.gather(1, parent)
        self.scores = torch.where(unfinished, means * self.lengths, self.scores)
        self.written = self.written.gather(1, parent[:, :, None].expand(-1, -1, self.limit))
        self.written[:, :, self.steps] = last
        self.stopped = kept | (last == self.stop_ids)
        self.steps += 1
        where = torch.full((rows, width), -1, device=device)  # each hypothesis's place in the LM's batch
        where[row, beam] = torch.arange(len(row), device=device)
        self._aim(last, where.gather(1, parent))

    def answers(self) -> list[list[Hypothesis]]:
        means = self.scores / self.lengths
        order = means.argsort(dim=1, descending=True, stable=True)[:, : self.count].tolist()
        ids, ends, values = self.written.tolist(), self.lengths.long().tolist(), means.tolist()
        return [
            [Hypothesis(tuple(ids[row][w][: ends[row][w]]), values[row][w]) for w in best]
            for row, best in enumerate(order)
        ]


class _Separate:
    """Greedy decoding and sampling: hypotheses that never meet, `options.captions` of each row."""

    def __init__(self, options: DecodingOptions, stop_ids: Sequence[int], logits: Tensor) -> None:
        self.count, self.limit = options.captions, options.max_length
        self.stop_ids = [stop for stop in stop_ids for _ in range(self.count)]  # of each hypothesis
        self.pick = _greedy if options.method == "greedy" else _Nucleus(options, len(stop_ids))
        self.written: list[list[int]] = [[] for _ in self.stop_ids]
        self.sums = [0.0] * len(self.written)
        self.live = list(range(len(self.written)))
        rows = torch.arange(len(stop_ids), device=logits.device).repeat_interleave(self.count)
        self._choose(logits[rows], rows)

    def go_on(self, logits: Tensor) -> None:
        self._choose(logits, torch.arange(len(logits), device=logits.device))

    def _choose(self, logits: Tensor, places: Tensor) -> None:
        """A token for each live hypothesis by (L, V), whose places among the last logits are (L,)."""
        chosen, log_probabilities = self.pick(logits, self.live)
        going = []
        for place, (hypothesis, token, value) in enumerate(
            zip(self.live, chosen.tolist(), log_probabilities.tolist(), strict=True)
        ):
            self.written[hypothesis].append(token)
            self.sums[hypothesis] += value
            if token != self.stop_ids[hypothesis] and len(self.written[hypothesis]) < self.limit:
                going.append(place)
        self.live = [self.live[place] for place in going]
        self.sources, self.tokens = places[going], chosen[going]

    def answers(self) -> list[list[Hypothesis]]:
        found = [Hypothesis(tuple(ids), total / len(ids)) for ids, total in zip(self.written, self.sums, strict=True)]
        grouped = [found[first : first + self.count] for first in range(0, len(found), self.count)]
        return [sorted(group, key=lambda answer: -answer.log_probability) for group in grouped]


def _greedy(logits: Tensor, live: list[int]) -> tuple[Tensor, Tensor]:
    """(L, V) -> the likeliest tokens and their log-probabilities, (L,) each."""
    best, chosen = logits.max(-1)
    return chosen, best - logits.logsumexp(-1)


class _Nucleus:
    """Sampling from the smallest set of tokens that holds `top_p` of the probability.

    Every hypothesis draws from a generator of its own, so its samples do not depend on the rest of the batch.
    """

    def __init__(self, options: DecodingOptions, rows: int) -> None:
        self.temperature = options.temperature or 1.0
        self.top_p = options.top_p or 0.9
        seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(62)
        self.generators = []
        for _ in range(rows):
            for number in range(options.captions):
                self.generators.append(random.Random(f"{seed} {number}"))

    def __call__(self, logits: Tensor, live: list[int]) -> tuple[Tensor, Tensor]:
        probabilities = (logits.double() / self.temperature).softmax(-1).float()
        width = 64  # of the likeliest tokens, which nearly always hold the nucleus: sorting all would take far longer
        while True:
            ranked, order = probabilities.topk(min(width, logits.shape[-1]))
            mass = ranked.cumsum(-1)
            if width >= logits.shape[-1] or bool((mass[:, -1] >= self.top_p).all()):
                break
            width *= 8
        # The token that crosses top_p is the last one in; a tiny top_p rounds to none.
        last = (mass - ranked < self.top_p).sum(-1, keepdim=True).clamp(min=1) - 1
        draws = torch.tensor([[self.generators[h].random()] for h in live], device=logits.device)
        place = torch.searchsorted(mass, draws * mass.gather(1, last), right=True)
        chosen = order.gather(1, torch.minimum(place, last))
        return chosen[:, 0], logits.gather(1, chosen)[:, 0] - logits.logsumexp(-1)
