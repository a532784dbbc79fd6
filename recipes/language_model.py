"""Train the small language model: on text, then on image-caption pairs of all styles, then never again.

    python -m recipes.language_model --data DATA --models models/mini --work WORK

GPT-2's architecture, 4 layers of width 256, with a byte-level BPE of its own. A model this small follows a prefix
only if it has learned to, so after the text it is trained together with a mapper for each style (the paper's
fine-tuned variant): first on the teacher's embeddings, then on the distilled encoder's. The three mappers share
everything but their constants. What `recipes.best_of` makes of the LM is frozen.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.encoder import Encoder
from clipcap.mapper import Mapper, MapperConfig, TransformerMapper
from recipes.encoder import whole
from recipes.photos import STYLES, Photo, load_photos, load_texts
from recipes.schedule import Average, autocast, learning_rate
from training.packing import pack
from training.trainer import standardize

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 4096, 256, 4, 4, 128
END = "<|endoftext|>"
CPU = torch.device("cpu")
MAPPER = MapperConfig("transformer", embedding_size=512, lm_size=WIDTH, prefix_length=10, layers=4)


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
                group["lr"] = learning_rate(step / steps, 1.5e-3, 5e-4, 100 / steps)
            logits = model(batch).logits[:, :-1]
            loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 20 == 0:
                print(f"text {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f}s", flush=True)


def sharing_mappers(embeddings: Tensor) -> list[TransformerMapper]:
    """A new mapper for each style, which share all but their constants, scaled for (N, 512) `embeddings`."""
    mappers = [TransformerMapper(MAPPER) for _ in STYLES]
    standardize(mappers[0], embeddings)
    for mapper in mappers[1:]:
        mapper.linear, mapper.blocks = mappers[0].linear, mappers[0].blocks
    return mappers


class Joint(nn.Module):
    """The LM with a mapper for each style."""

    def __init__(self, model: GPT2LMHeadModel, mappers: Sequence[Mapper]) -> None:
        super().__init__()
        self.model: GPT2LMHeadModel = model.requires_grad_(True)
        # Mappers that come from a file take no gradient.
        self.mappers = nn.ModuleList(mappers).requires_grad_(True)

    def loss(self, rows: list[tuple[str, Tensor, list[list[int]]]]) -> tuple[Tensor, int]:
        """Summed cross-entropy, and its number of tokens, of rows: style, embedding (512,), captions of the image."""
        rows = sorted(rows, key=lambda row: STYLES.index(row[0]))
        prefixes = []
        for style, mapper in zip(STYLES, self.mappers, strict=True):
            embeddings = [embedding for s, embedding, _ in rows if s == style]
            if embeddings:
                prefixes.append(mapper(torch.stack(embeddings)))
        batch = pack([captions for _, _, captions in rows], MAPPER.prefix_length, 0)
        x = torch.cat([torch.cat(prefixes), self.model.transformer.wte(batch.tokens)], dim=1)
        keep = x.shape[1] - MAPPER.prefix_length + 1
        logits = self.model(
            inputs_embeds=x, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=keep
        ).logits
        picked = logits.reshape(-1, VOCABULARY)[batch.source]
        return F.cross_entropy(picked.float(), batch.target, reduction="sum"), len(batch.target)


def mirrored(photo: Photo) -> Image.Image:
    """The mirror image of a photo, of which the same captions are true."""
    return ImageOps.mirror(whole(photo))


Captions = dict[str, list[list[int]]]  # the token ids of an image's captions by style


class Data:
    """The photos of one split: where they stand among all, their captions, and the teacher's embeddings (N, 512)."""

    def __init__(self, photos: list[Photo], split: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = [i for i, photo in enumerate(photos) if photo.split == split]
        self.captions: list[Captions] = [
            {style: [tokenizer.encode(text) for text in texts] for style, texts in photos[i].captions.items()}
            for i in self.rows
        ]
        self.teacher = torch.from_numpy(np.stack([photos[i].teacher for i in self.rows])).float()


def train_jointly(
    joint: Joint,
    data: Data,
    *,
    views: Sequence[Tensor],
    steps: int,
    size: int,
    captions_each: int,
    peak: float,
    final: float,
    lm_share: float,
    noise: float,
    styled_weight: float,
    seed: int,
) -> Joint:
    """Train LM and mappers on image-caption pairs of all styles.

    Args:
        views: of each image (N, 512) embeddings, one of which is drawn at random.
        size, captions_each: images a step, and factual captions of each.
        peak, final: the mappers' learning rate; the LM has `lm_share` of it. It learns slower because it already
            writes, and would rather learn the captions by heart than look at the prefix.
        noise: added to an embedding, in deviations of each dimension.
        styled_weight: what a styled caption counts.

    Returns:
        The running average of the weights.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    groups = [
        {"params": list(joint.mappers.parameters()), "share": 1.0},
        {"params": list(joint.model.parameters()), "share": lm_share},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(joint, decay=0.995)
    deviation = data.teacher.std(0)
    order: list[int] = []
    recent: list[float] = []
    started = time.monotonic()
    joint.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(step / steps, peak, final, 100 / steps)
        if len(order) < size:
            order = rng.sample(range(len(data.rows)), len(data.rows))
        chosen, order = order[:size], order[size:]
        embeddings = torch.stack([rng.choice(views)[i] for i in chosen])
        embeddings = embeddings + noise * deviation * torch.randn_like(embeddings)
        pairs = [(data.captions[i], e) for i, e in zip(chosen, embeddings, strict=True)]
        factual = [
            ("factual", e, rng.sample(c["factual"], min(captions_each, len(c["factual"]))))
            for c, e in pairs
            if "factual" in c
        ]
        styled = [(s, e, c[s]) for c, e in pairs for s in STYLES[1:] if s in c]
        with autocast(CPU):
            sums = [(weight, *joint.loss(rows)) for weight, rows in ((1.0, factual), (styled_weight, styled)) if rows]
        loss = torch.stack([weight * total for weight, total, _ in sums]).sum() / sum(w * n for w, _, n in sums)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(joint.parameters(), 1.0)
        optimizer.step()
        average.update(joint)
        recent.append(loss.item())
        if len(recent) == 100:
            took = time.monotonic() - started
            print(f"{step + 1}/{steps} loss {sum(recent) / 100:.3f} {took:.0f}s", flush=True)
            recent = []
    return average.module


@torch.inference_mode()
def dev_losses(joint: Joint, data: Data, embeddings: Tensor) -> dict[str, float]:
    """Mean cross-entropy per token by style, given (N, 512) embeddings."""
    joint.eval()
    losses = {}
    for style in STYLES:
        rows = [(style, e, c[style]) for e, c in zip(embeddings, data.captions, strict=True) if style in c]
        parts = [joint.loss(rows[i : i + 64]) for i in range(0, len(rows), 64)]
        losses[style] = round(sum(total.item() for total, _ in parts) / sum(count for _, count in parts), 4)
    return losses


def save_lm(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the LM in half precision, with its tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, which is trained on; receives lm/")
    parser.add_argument("--work", type=Path, required=True, help="receives what recipes.mappers starts from")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of training steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    photos = load_photos(arguments.data)
    texts = load_texts(arguments.data, photos)
    tokenizer = train_tokenizer(texts)
    model = new_model()
    train_on_text(model, [tokenizer.encode(text) for text in texts], 1.2 * arguments.scale, seed=0)

    encoder = Encoder.load(f"local-dir:{arguments.models / 'encoder'}", device="cpu")
    parts = [photos[first : first + 32] for first in range(0, len(photos), 32)]
    embeddings = [torch.cat([encoder.encode([view(p) for p in part]) for part in parts]) for view in (whole, mirrored)]
    training, dev = (Data(photos, split, tokenizer) for split in ("train", "dev"))

    def steps(count: int) -> int:
        scaled: float = count * arguments.scale
        return max(1, round(scaled))

    # Learn to look at a prefix, on the teacher's embeddings; then on the encoder's.
    joint = Joint(model, sharing_mappers(training.teacher))
    joint = train_jointly(
        joint,
        training,
        views=[training.teacher],
        steps=steps(240),
        size=12,
        captions_each=5,
        peak=1.2e-3,
        final=1e-3,
        lm_share=0.3,
        noise=0.25,
        styled_weight=2,
        seed=1,
    )
    joint = train_jointly(
        joint,
        training,
        views=[*(view[training.rows] for view in embeddings), training.teacher],
        steps=steps(10000),
        size=8,
        captions_each=3,
        peak=1.2e-3,
        final=0.0,
        lm_share=0.4,
        noise=0.25,
        styled_weight=2,  # there are fewer
        seed=3,
    )
    print("on dev:", dev_losses(joint, dev, embeddings[0][dev.rows]), flush=True)

    save_lm(joint.model, tokenizer, arguments.models / "lm")
    for style, mapper in zip(STYLES, joint.mappers, strict=True):
        assert isinstance(mapper, Mapper)
        save_mapper(MapperCheckpoint(mapper, None, None), arguments.work / f"start-{style}.safetensors")
    torch.save({"encoder": encoder.identity, "views": torch.stack(embeddings, dim=1)}, arguments.work / "views.pt")


if __name__ == "__main__":
    main()
