"""The authors' algorithm, written as plainly as it is described: what ours is measured and tested against.

Every token recomputes the whole sequence, one image at a time. A training step runs one caption a row, padded to one
length, and computes the gradients of the language model's weights although nobody uses them.

Legend: K prefix length, D size of a token embedding, V vocabulary, W beams, B captions, T padded length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


@torch.no_grad()
def greedy(model: PreTrainedModel, prefix: Tensor, stop_id: int, limit: int) -> list[int]:
    """The likeliest token again and again, from a prefix (K, D), up to `limit` tokens or the stop token."""
    embedded = prefix[None]
    tokens: list[int] = []
    while len(tokens) < limit:
        token = int(model(inputs_embeds=embedded).logits[0, -1].argmax())
        tokens.append(token)
        if token == stop_id:
            break
        following = model.get_input_embeddings()(torch.tensor([[token]]))
        embedded = torch.cat([embedded, following], dim=1)
    return tokens


@torch.no_grad()
def beam(model: PreTrainedModel, prefix: Tensor, stop_id: int, limit: int, width: int = 5) -> list[list[int]]:
    """Beam search by mean log-probability per token, from a prefix (K, D); W token lists, best first."""
    first = model(inputs_embeds=prefix[None]).logits[0, -1].softmax(-1).log()
    scores, tokens = first.topk(width)
    tokens = tokens[:, None]  # (W, length)
    embedded = torch.cat([prefix.expand(width, -1, -1), model.get_input_embeddings()(tokens)], dim=1)
    lengths = torch.ones(width)
    stopped = tokens[:, 0] == stop_id
    for _ in range(limit - 1):
        if stopped.all():
            break
        following = model(inputs_embeds=embedded).logits[:, -1].softmax(-1).log()  # (W, V)
        following[stopped] = -torch.inf  # a finished caption has one successor, itself, at no cost
        following[stopped, 0] = 0
        lengths = lengths + ~stopped
        means = (scores[:, None] + following) / lengths[:, None]
        best, place = means.flatten().topk(width)
        parent, token = place // following.shape[1], place % following.shape[1]
        lengths, stopped = lengths[parent], stopped[parent]
        scores = best * lengths
        tokens = torch.cat([tokens[parent], token[:, None]], dim=1)
        embedded = torch.cat([embedded[parent], model.get_input_embeddings()(token[:, None])], dim=1)
        stopped = stopped | (token == stop_id)
    order = (scores / lengths).argsort(descending=True)
    return [tokens[w, : int(lengths[w])].tolist() for w in order]


def training_step(
    model: PreTrainedModel,
    mapper: nn.Module,
    optimizer: torch.optim.Optimizer,
    embeddings: Tensor,
    captions: Sequence[Sequence[int]],
    length: int,
) -> float:
    """One step on B (embedding, caption) pairs, (B, E) and token ids, each padded to `length` tokens.

    Token 0 counts as padding, also where a caption says it.

    Returns:
        The loss.
    """
    tokens = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in enumerate(captions):
        tokens[row, : len(caption)] = torch.tensor(caption[:length])
    prefix = mapper(embeddings)
    embedded = torch.cat([prefix, model.get_input_embeddings()(tokens)], dim=1)
    logits = model(inputs_embeds=embedded).logits[:, prefix.shape[1] - 1 : -1]
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=0)
    model.zero_grad()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
