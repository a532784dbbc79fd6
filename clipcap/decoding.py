"""From prefixes to captions: batched greedy, beam and nucleus decoding with a KV cache.

The rows of a batch are independent: they may come from different mappers, differ in prefix length and in the token
that ends them, and each gets what it would get alone. Shorter prefixes are padded on the left, and a row leaves the
batch with its last unfinished hypothesis, so the LM never computes what nobody reads.

Beam search keeps the hypotheses with the best mean log-probability per token, as the authors' code does. Nucleus
sampling is Holtzman et al., arXiv 1904.09751.

Legend: B rows, W beams, K prefix length, D size of a token embedding, V vocabulary, L live hypotheses.
"""

import clipcap.torchvision_schemas  # noqa: F401 (before transformers is imported)

# isort: split
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from clipcap.language_model import LanguageModel
from clipcap.options import DecodingOptions


@dataclass(frozen=True)
class Hypothesis:
    """Tokens as generated, the one that ended them included, and their mean log-probability per token."""

    tokens: tuple[int, ...]
    confidence: float


@torch.inference_mode()
def decode(
    lm: LanguageModel, prefixes: Sequence[Tensor], options: DecodingOptions, stop_ids: Sequence[int]
) -> list[list[Hypothesis]]:
    """Captions for a batch of prefixes over one LM.

    Args:
        lm: the frozen language model.
        prefixes: B prefixes, (K, D) each; K may differ from row to row.
        options: the same for every row.
        stop_ids: B tokens, each ending the captions of its row.

    Returns:
        `options.captions` hypotheses a row, best first.

    Raises:
        ValueError: a prefix and `max_length` together do not fit into the LM, or more beams than it has tokens.
    """
    if not prefixes:
        return []
    longest = max(len(prefix) for prefix in prefixes)
    if longest + options.max_length > lm.max_length:
        raise ValueError(
            f"max_length must be at most {lm.max_length - longest}: the prefix takes {longest} of the "
            f"{lm.max_length} positions of language model {lm.identity}"
        )
    if options.method == "beam" and (options.beam_size or 5) > lm.vocabulary:
        raise ValueError(f"beam_size must be at most {lm.vocabulary}, the tokens that {lm.identity} knows")
    if options.method == "beam":
        return _beam(lm, prefixes, options, torch.tensor(stop_ids, device=lm.device))
    return _one_by_one(lm, prefixes, options, stop_ids)


class _Generation:
    """The LM's side of a batch: its cache, and the padding in front of shorter prefixes."""

    def __init__(self, lm: LanguageModel, prefixes: Sequence[Tensor]) -> None:
        self.lm = lm
        self.cache = DynamicCache(config=lm.model.config)
        longest = max(len(prefix) for prefix in prefixes)
        embedded = torch.zeros(len(prefixes), longest, lm.size, device=lm.device, dtype=lm.dtype)
        self.mask: Tensor | None = None  # (L, S); none where no prefix is shorter than another
        positions = None
        if any(len(prefix) < longest for prefix in prefixes):
            self.mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=lm.device)
        for row, prefix in enumerate(prefixes):
            embedded[row, longest - len(prefix) :] = prefix
            if self.mask is not None:
                self.mask[row, longest - len(prefix) :] = 1
        if self.mask is not None:
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        out = lm.logits(embedded, mask=self.mask, positions=positions, cache=self.cache, keep=1)
        self.logits = out[:, -1].float()  # (L, V) of each live hypothesis's next token

    def advance(self, sources: Tensor, tokens: Tensor) -> None:
        """Go on with hypotheses `sources` (L,), rows of the last step's, each followed by `tokens` (L,)."""
        unchanged = len(sources) == len(self.logits) and bool(
            (sources == torch.arange(len(sources), device=sources.device)).all()
        )
        if not unchanged:
            self.cache.batch_select_indices(sources)
        positions = None
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask[sources], (0, 1), value=1)
            positions = self.mask.sum(1, keepdim=True) - 1
        embedded = self.lm.embed(tokens[:, None])
        self.logits = self.lm.logits(embedded, mask=self.mask, positions=positions, cache=self.cache)[:, -1].float()


def _beam(
    lm: LanguageModel, prefixes: Sequence[Tensor], options: DecodingOptions, stop_ids: Tensor
) -> list[list[Hypothesis]]:
    rows, width, limit = len(prefixes), options.beam_size or 5, options.max_length
    device = lm.device
    generation = _Generation(lm, prefixes)
    scores, last = generation.logits.log_softmax(-1).topk(width)  # (B, W) summed log-probabilities, newest tokens
    tokens = torch.zeros(rows, width, limit, dtype=torch.long, device=device)
    tokens[:, :, 0] = last
    lengths = torch.ones(rows, width, device=device)
    stopped = last == stop_ids[:, None]
    live = (~stopped).nonzero()  # (L, 2) of row and beam: what the LM still computes
    sources = live[:, 0]  # before the beams part, each row of the batch is one hypothesis
    for step in range(1, limit):
        if not len(live):
            break
        row, beam = live.T
        generation.advance(sources, last[row, beam])
        # A hypothesis can be followed by any token, but only its best W can be among its row's best W. A stopped
        # one has a single successor, itself.
        best, choice = generation.logits.topk(width)
        added = best - generation.logits.logsumexp(-1, keepdim=True)
        totals = torch.full((rows, width, width), -torch.inf, device=device)
        totals[:, :, 0] = scores
        choices = torch.zeros(rows, width, width, dtype=torch.long, device=device)
        totals[row, beam] = scores[row, beam, None] + added
        choices[row, beam] = choice
        grown = lengths + (~stopped)
        means, picked = (totals / grown[:, :, None]).view(rows, -1).topk(width)  # (B, W)
        parent = picked // width
        unfinished = (~stopped).any(1)  # rows that have all they need stay as they are
        parent = torch.where(unfinished[:, None], parent, torch.arange(width, device=device))
        kept = stopped.gather(1, parent)
        last = torch.where(kept, 0, choices.view(rows, -1).gather(1, picked))
        lengths = grown.gather(1, parent)
        scores = torch.where(unfinished[:, None], means * lengths, scores)
        tokens = tokens.gather(1, parent[:, :, None].expand(-1, -1, limit))
        tokens[:, :, step] = last
        stopped = kept | (last == stop_ids[:, None])
        where = torch.full((rows, width), -1, device=device)  # each hypothesis's place in the LM's batch
        where[row, beam] = torch.arange(len(row), device=device)
        live = (~stopped).nonzero()
        sources = where.gather(1, parent)[live[:, 0], live[:, 1]]
    means = scores / lengths
    order = means.argsort(dim=1, descending=True, stable=True)[:, : options.captions].tolist()
    ids, ends, confidences = tokens.tolist(), lengths.long().tolist(), means.tolist()
    return [[Hypothesis(tuple(ids[r][w][: ends[r][w]]), confidences[r][w]) for w in order[r]] for r in range(rows)]


def _one_by_one(
    lm: LanguageModel, prefixes: Sequence[Tensor], options: DecodingOptions, stop_ids: Sequence[int]
) -> list[list[Hypothesis]]:
    """Greedy decoding and sampling: hypotheses that never meet, `options.captions` of each row."""
    count = options.captions
    generation = _Generation(lm, prefixes)
    pick = _greedy if options.method == "greedy" else _Nucleus(options, len(prefixes))
    written: list[list[int]] = [[] for _ in range(len(prefixes) * count)]
    sums = [0.0] * len(written)
    live = list(range(len(written)))  # hypothesis h belongs to row h // count
    sources = [hypothesis // count for hypothesis in live]
    generation.logits = generation.logits[sources] if count > 1 else generation.logits
    for step in range(options.max_length):
        chosen, log_probabilities = pick(generation.logits, live)
        places = []
        for place, (hypothesis, token, value) in enumerate(
            zip(live, chosen.tolist(), log_probabilities.tolist(), strict=True)
        ):
            written[hypothesis].append(token)
            sums[hypothesis] += value
            if token != stop_ids[hypothesis // count]:
                places.append(place)
        if not places or step + 1 == options.max_length:
            break
        live = [live[place] for place in places]
        kept = torch.tensor(places, device=lm.device)
        origin = torch.tensor([sources[place] for place in places], device=lm.device) if step == 0 else kept
        generation.advance(origin, chosen[kept])
    answers = [Hypothesis(tuple(ids), total / len(ids)) for ids, total in zip(written, sums, strict=True)]
    grouped = [answers[first : first + count] for first in range(0, len(answers), count)]
    return [sorted(group, key=lambda answer: -answer.confidence) for group in grouped]


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
        log_probabilities = logits.log_softmax(-1)
        ranked, order = (logits.double() / self.temperature).softmax(-1).float().sort(descending=True)
        mass = ranked.cumsum(-1)
        inside = mass - ranked < self.top_p  # the token that crosses top_p is the last one in
        total = (ranked * inside).sum(-1)
        draws = torch.tensor([self.generators[h].random() for h in live], device=logits.device)
        place = torch.searchsorted(mass, (draws * total)[:, None], right=True).clamp(max=logits.shape[-1] - 1)
        place = torch.minimum(place, (inside.sum(-1, keepdim=True) - 1).clamp(min=0))  # a tiny top_p rounds to none
        chosen = order.gather(1, place)
        return chosen[:, 0], log_probabilities.gather(1, chosen)[:, 0]
