"""Train the small language model: on text, then on image-caption pairs of all styles, then never again.

    python -m recipes.language_model --data DATA --encoder models/mini/encoder --out models/mini/lm --work WORK

GPT-2's architecture, 4 layers of width 256, with a byte-level BPE of its own. A model this small follows a prefix
only if it has learned to, so after the text it is trained together with a mapper for each style (the paper's
fine-tuned variant). The three mappers share everything but their constants; they are thrown away: `recipes.mappers`
trains the ones that ship against the frozen LM.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.mapper import MapperConfig, TransformerMapper
from recipes.photos import STYLES, Photo, load_photos, load_texts
from recipes.schedule import Average, learning_rate
from training.packing import pack

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 4096, 256, 4, 4, 128
END = "<|endoftext|>"
MAPPER = MapperConfig("transformer", embedding_size=512, lm_size=WIDTH, prefix_length=10, normalize=True, layers=4)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the whole byte alphabet, so that any UTF-8 caption can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def new_model() -> GPT2LMHeadModel:
    """An untrained GPT-2 of the size above; token 0 ends a text."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def train_on_text(model: GPT2LMHeadModel, captions: list[list[int]], epochs: float, seed: int) -> None:
    """Captions one after the other, each followed by the end token, in blocks of 64 tokens."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    per_epoch = sum(len(c) + 1 for c in captions) // (64 * 64)
    steps = int(epochs * per_epoch)
    step, started = 0, time.monotonic()
    model.train()
    while step < steps:
        stream = [0] + [t for c in rng.sample(captions, len(captions)) for t in (*c, 0)]
        blocks = torch.tensor(stream[: len(stream) // 64 * 64]).view(-1, 64)
        for batch in blocks.split(64):
            if step >= steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, 1.5e-3, 5e-4)
            logits = model(batch).logits[:, :-1]
            loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 20 == 0:
                print(f"text {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f}s", flush=True)


class Joint(nn.Module):
    """The LM with one mapper a style, which share all but their constants."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model
        self.mappers = nn.ModuleDict({style: TransformerMapper(MAPPER) for style in STYLES})
        for mapper in self.mappers.values():
            mapper.linear, mapper.blocks = self.mappers["factual"].linear, self.mappers["factual"].blocks

    def loss(self, rows: list[tuple[str, Tensor, list[list[int]]]]) -> tuple[Tensor, int]:
        """Summed cross-entropy, and its number of tokens, of rows: style, embedding (E,), captions of the image."""
        rows = sorted(rows, key=lambda row: STYLES.index(row[0]))
        prefixes = []
        for style in STYLES:
            embeddings = [embedding for s, embedding, _ in rows if s == style]
            if embeddings:
                prefixes.append(self.mappers[style](torch.stack(embeddings)))
        batch = pack([captions for _, _, captions in rows], MAPPER.prefix_length, 0)
        x = torch.cat([torch.cat(prefixes), self.model.transformer.wte(batch.tokens)], dim=1)
        keep = x.shape[1] - MAPPER.prefix_length + 1
        logits = self.model(
            inputs_embeds=x, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=keep
        ).logits
        picked = logits.reshape(-1, VOCABULARY)[batch.source]
        return F.cross_entropy(picked, batch.target, reduction="sum"), len(batch.target)


Captions = dict[str, list[list[int]]]  # the token ids of an image's captions by style


def train_jointly(
    joint: Joint,
    views: list[Tensor],
    captions: list[Captions],
    dev_embeddings: Tensor,
    dev_captions: list[Captions],
    epochs: int,
    peak: float,
    final: float,
    seed: int,
    *,
    noise: float = 0.25,
    styled_weight: float = 2.0,
) -> Joint:
    """Train LM and mappers on N images; a view is (N, 512) embeddings, one drawn at random for each image.

    The factual captions of an image stand behind one prefix. Styled ones count more, since there are five times fewer.

    Returns:
        The running average of the weights.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(joint.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(joint, decay=0.998)
    deviation = torch.cat(views).std(0)
    size = 32
    steps = epochs * math.ceil(len(captions) / size)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        joint.train()
        order = rng.sample(range(len(captions)), len(captions))
        for first in range(0, len(order), size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak, final)
            drawn = {i: rng.choice(views)[i] for i in order[first : first + size]}
            drawn = {i: e + noise * deviation * torch.randn(len(e)) for i, e in drawn.items()}
            factual, factual_count = joint.loss([("factual", e, captions[i]["factual"]) for i, e in drawn.items()])
            styled, styled_count = joint.loss(
                [(s, e, captions[i][s]) for i, e in drawn.items() for s in STYLES[1:] if s in captions[i]]
            )
            weighted = factual + styled_weight * styled
            loss = weighted / (factual_count + styled_weight * styled_count)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(joint.parameters(), 1.0)
            optimizer.step()
            average.update(joint)
            step += 1
            if step % 20 == 0:
                print(
                    f"joint {step}/{steps} factual {factual / factual_count:.3f} styled {styled / styled_count:.3f} "
                    f"{time.monotonic() - started:.0f}s",
                    flush=True,
                )
        losses = dev_losses(average.module, dev_embeddings, dev_captions)
        print(f"epoch {epoch + 1}: " + ", ".join(f"{s} {x:.4f}" for s, x in losses.items()) + " on dev", flush=True)
    return average.module


@torch.inference_mode()
def dev_losses(joint: Joint, embeddings: Tensor, captions: list[Captions]) -> dict[str, float]:
    """Mean cross-entropy per token on dev, by style."""
    joint.eval()
    losses = {}
    for style in STYLES:
        rows = [(style, e, c[style]) for e, c in zip(embeddings, captions, strict=True) if style in c]
        parts = [joint.loss(rows[i : i + 64]) for i in range(0, len(rows), 64)]
        losses[style] = float(sum(total for total, _ in parts)) / sum(count for _, count in parts)
    return losses
