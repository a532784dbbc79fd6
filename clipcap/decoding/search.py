"""From prefixes to captions: batched greedy, beam and nucleus decoding.

The rows of a batch are independent: they may come from different mappers, differ in prefix length and in the token
that ends them, and each gets what it would get alone. A row leaves the batch with its last unfinished hypothesis, so
the language model never computes what nobody reads. Several ways of decoding share a batch, and the one pass over its
prefixes.

Legend: B rows, K prefix length, D size of a token embedding.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from clipcap.adapters import Adapters
from clipcap.decoding.backends.base import Backend
from clipcap.decoding.beam import BeamSearch
from clipcap.decoding.hypothesis import Hypothesis, Search
from clipcap.decoding.sampling import Sampling
from clipcap.options import DecodingOptions


def decode(
    backend: Backend,
    prefixes: Sequence[Tensor],
    options: DecodingOptions,
    stop_ids: Sequence[int],
    between: Callable[[], object] = lambda: None,
    adapters: Sequence[Adapters | None] = (),
) -> list[list[Hypothesis]]:
    """Captions for a batch of prefixes over one LM.

    Args:
        backend: runs the language model.
        prefixes: B prefixes, (K, D) each; K may differ from row to row.
        options: the same for every row.
        stop_ids: B tokens, each ending the captions of its row.
        between: called between two tokens.
        adapters: what is added to the LM for each row; nothing for any, if none are given.

    Returns:
        `options.captions` hypotheses a row, best first.

    Raises:
        ValueError: a prefix and `max_length` together do not fit into the LM, or more beams than it has tokens.
    """
    return decode_together(backend, prefixes, [options], stop_ids, between, adapters)


@torch.inference_mode()
def decode_together(
    backend: Backend,
    prefixes: Sequence[Tensor],
    ways: Sequence[DecodingOptions],
    stop_ids: Sequence[int],
    between: Callable[[], object] = lambda: None,
    adapters: Sequence[Adapters | None] = (),
) -> list[list[Hypothesis]]:
    """What `decode` answers to each of `ways`, with as many passes of the language model as the longest of them needs.

    Returns:
        Of each row the hypotheses of the first way, then those of the second, and so on.

    Raises:
        ValueError: as `decode` does.
    """
    if not prefixes:
        return []
    longest = max(len(prefix) for prefix in prefixes)
    for way in ways:
        if longest + way.max_length > backend.max_length:
            raise ValueError(
                f"max_length must be at most {backend.max_length - longest}: the prefix takes {longest} of the "
                f"{backend.max_length} positions of language model {backend.identity}"
            )
        if way.method == "beam" and (way.beam_size or 5) > backend.vocabulary:
            raise ValueError(
                f"beam_size must be at most {backend.vocabulary}, the vocabulary size of {backend.identity}"
            )
    generation = backend.start(prefixes, adapters)
    searches: list[Search] = []
    for way in ways:
        kind = BeamSearch if way.method == "beam" else Sampling
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
