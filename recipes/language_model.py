"""Train the small language model: on text, then on image-caption pairs of all styles, then never again.

    python -m recipes.language_model --data DATA --models models/mini --work WORK

GPT-2's architecture, 4 layers of width 256, with a byte-level BPE of its own. A model this small follows a prefix
only if it has learned to, so after the text it is trained together with a mapper for each style (the paper's
fine-tuned variant): first on the teacher's embeddings, then on the distilled encoder's, whose last layers train along.
The three mappers share everything but their constants; they are where `recipes.mappers` starts from when it trains
the ones that ship against the frozen LM.
"""

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from open_clip import create_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.encoder import Encoder
from clipcap.mapper import MapperConfig, TransformerMapper
from recipes.encoder import VIEWS, Frozen, Maps, Trained, distillation_loss, draw_maps, embed, feature_maps, save_tower
from recipes.photos import STYLES, Photo, load_photos, load_texts
from recipes.schedule import Average, learning_rate
from training.packing import pack
from training.trainer import standardize

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 4096, 256, 4, 4, 128
END = "<|endoftext|>"
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

    def __init__(self, model: GPT2LMHeadModel, embeddings: Tensor) -> None:
        """`embeddings`, (N, 512), are what the mappers' first layer is scaled for."""
        super().__init__()
        self.model = model
        self.mappers = nn.ModuleDict({style: TransformerMapper(MAPPER) for style in STYLES})
        for mapper in self.mappers.values():
            mapper.linear, mapper.blocks = self.mappers["factual"].linear, self.mappers["factual"].blocks
        standardize(self.mappers["factual"], embeddings)

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


class Data:
    """The photos of one split: their captions, teacher embeddings (N, 512) and, once there is an encoder to train
    along, the views' feature maps, of which `rows` are this split's."""

    def __init__(self, photos: list[Photo], split: str, tokenizer: PreTrainedTokenizerFast, views: list[Maps]) -> None:
        self.rows = [i for i, photo in enumerate(photos) if photo.split == split]
        self.captions: list[Captions] = [
            {style: [tokenizer.encode(text) for text in texts] for style, texts in photos[i].captions.items()}
            for i in self.rows
        ]
        self.teacher = torch.from_numpy(np.stack([photos[i].teacher for i in self.rows])).float()
        self.views = views


def train_jointly(
    joint: Joint,
    encoder: Trained | None,
    training: Data,
    dev: Data,
    *,
    epochs: int,
    peak: float,
    final: float,
    seed: int,
    size: int,
    noise: float = 0.25,
    styled_weight: float = 2.0,
    distillation_weight: float = 0.5,
) -> nn.ModuleDict:
    """Train LM and mappers on the teacher's embeddings or, if there is an `encoder`, on its own while it trains along
    and stays near the teacher.

    The factual captions of an image stand behind one prefix. Styled ones count more, since there are five times fewer.
    Batches have `size` images; `noise` is added to embeddings, in units of each dimension's deviation.

    Returns:
        The running average of the weights, "joint" and perhaps "encoder".
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    trained = nn.ModuleDict({"joint": joint} | ({"encoder": encoder} if encoder else {}))
    # The LM learns slowest: it already writes, and would rather learn the captions by heart than look at the prefix.
    groups = [{"params": joint.mappers.parameters(), "share": 1.0}, {"params": joint.model.parameters(), "share": 0.3}]
    if encoder:
        groups.append({"params": encoder.parameters(), "share": 0.3})
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(trained, decay=0.998)
    deviation = training.teacher.std(0)
    steps = epochs * math.ceil(len(training.rows) / size)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        trained.train()
        for chosen in batches(training, size, rng):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * learning_rate(step, steps, peak, final)
            teacher = training.teacher[chosen]
            loss, embeddings = torch.zeros(()), teacher
            if encoder:
                embeddings = encoder(draw_maps(training.views, [training.rows[i] for i in chosen], rng))
                loss = distillation_weight * distillation_loss(embeddings, teacher)
            noisy = embeddings + noise * deviation * torch.randn_like(embeddings)
            pairs = [(training.captions[i], e) for i, e in zip(chosen, noisy, strict=True)]
            factual, factual_count = joint.loss([("factual", e, c["factual"]) for c, e in pairs])
            styled, styled_count = joint.loss([(s, e, c[s]) for c, e in pairs for s in STYLES[1:] if s in c])
            loss = loss + (factual + styled_weight * styled) / (factual_count + styled_weight * styled_count)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            average.update(trained)
            step += 1
            if step % 20 == 0:
                print(
                    f"joint {step}/{steps} all {loss:.3f} factual {factual / factual_count:.3f} "
                    f"styled {styled / styled_count:.3f} {time.monotonic() - started:.0f}s",
                    flush=True,
                )
        print(f"epoch {epoch + 1} on dev: {dev_losses(average.module, dev)}", flush=True)
    return average.module


def batches(data: Data, size: int, rng: random.Random) -> list[list[int]]:
    """One epoch: images with about as many caption tokens together, which saves padding, all else at random."""
    lengths = [sum(map(len, captions["factual"])) for captions in data.captions]
    order = rng.sample(range(len(lengths)), len(lengths))
    chosen = []
    for first in range(0, len(order), 20 * size):
        pool = sorted(order[first : first + 20 * size], key=lambda i: lengths[i])
        chosen += [pool[i : i + size] for i in range(0, len(pool), size)]
    return rng.sample(chosen, len(chosen))


@torch.inference_mode()
def dev_losses(trained: nn.ModuleDict, dev: Data) -> dict[str, float]:
    """Mean cross-entropy per token by style, and the cosine to the teacher."""
    trained.eval()
    embeddings = embed(trained["encoder"], dev.views[0], dev.rows) if "encoder" in trained else dev.teacher
    losses = {"cosine": float(F.cosine_similarity(embeddings, dev.teacher).mean())}
    for style in STYLES:
        rows = [(style, e, c[style]) for e, c in zip(embeddings, dev.captions, strict=True) if style in c]
        parts = [trained["joint"].loss(rows[i : i + 64]) for i in range(0, len(rows), 64)]
        losses[style] = float(sum(total for total, _ in parts)) / sum(count for _, count in parts)
    return {name: round(value, 4) for name, value in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, which is trained on; receives lm/")
    parser.add_argument("--work", type=Path, required=True, help="as given to recipes.encoder")
    parser.add_argument("--text-epochs", type=float, default=1.2)
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--joint-epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    photos = load_photos(arguments.data)
    texts = load_texts(arguments.data, photos)
    tokenizer = train_tokenizer(texts)
    model = new_model()
    train_on_text(model, [tokenizer.encode(text) for text in texts], arguments.text_epochs, seed=0)

    tower = create_model(f"local-dir:{arguments.models / 'encoder'}")
    views = [feature_maps(Frozen(tower.visual.trunk), photos, view, arguments.work) for view in VIEWS]
    training, dev = (Data(photos, split, tokenizer, views) for split in ("train", "dev"))
    joint = Joint(model, training.teacher)
    averaged = train_jointly(
        joint, None, training, dev, epochs=arguments.teacher_epochs, peak=1.2e-3, final=9e-4, seed=1, size=12
    )
    averaged = train_jointly(
        averaged["joint"],
        Trained(tower.visual),
        training,
        dev,
        epochs=arguments.joint_epochs,
        peak=9e-4,
        final=0.0,
        seed=2,
        size=24,
    )
    write(averaged, tower, tokenizer, photos, views, arguments.models, arguments.work)


def write(
    averaged: nn.ModuleDict,
    tower: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    photos: list[Photo],
    views: list[Maps],
    models: Path,
    work: Path,
) -> None:
    """Store encoder and LM as they ship, and for `recipes.mappers` the mappers to start from and every embedding."""
    save_tower(tower, averaged["encoder"], models / "encoder")
    averaged["joint"].model.half().save_pretrained(models / "lm")
    tokenizer.save_pretrained(models / "lm")
    for style, mapper in averaged["joint"].mappers.items():
        save_mapper(MapperCheckpoint(mapper, None, None), work / f"start-{style}.safetensors")
    encoder = Encoder.load(f"local-dir:{models / 'encoder'}", device="cpu")
    embeddings = [embed(averaged["encoder"], maps, list(range(len(photos)))) for maps in views]
    torch.save({"encoder": encoder.identity, "views": torch.stack(embeddings, dim=1)}, work / "views.pt")


if __name__ == "__main__":
    main()
