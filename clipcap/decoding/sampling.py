"""Greedy decoding and nucleus sampling (Holtzman et al., arXiv 1904.09751).

Legend: B rows, L live hypotheses, V vocabulary.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from clipcap.decoding.hypothesis import Hypothesis
from clipcap.options import DecodingOptions


class Sampling:
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
        """Choose the next tokens by (L, V)."""
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
        """`options.captions` hypotheses of each row, best first."""
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
