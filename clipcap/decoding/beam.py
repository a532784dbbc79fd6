"""Beam search: the hypotheses with the best mean log-probability per token, as the authors' code keeps them.

Legend: B rows, W beams, L live hypotheses, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipcap.decoding.hypothesis import Hypothesis
from clipcap.options import DecodingOptions


class BeamSearch:
    """Beam search over all rows of a batch; only unfinished hypotheses are computed."""

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
        """Choose the next tokens by (L, V)."""
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
        """`options.captions` hypotheses of each row, best first."""
        means = self.scores / self.lengths
        order = means.argsort(dim=1, descending=True, stable=True)[:, : self.count].tolist()
        ids, ends, values = self.written.tolist(), self.lengths.long().tolist(), means.tolist()
        return [
            [Hypothesis(tuple(ids[row][w][: ends[row][w]]), values[row][w]) for w in best]
            for row, best in enumerate(order)
        ]
