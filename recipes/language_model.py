"""Train the small language model on captions of pictures in every manner, together with throw-away mappers.

    python -m recipes.language_model --data DATA --models models/base --work WORK

GPT-2's architecture, 5 layers of width 320, with a byte-level BPE of its own. A model this small follows a prefix only
if it has learned to, so it is trained together with a mapper (the paper's fine-tuned variant) and frozen from then on.
The manners share that mapper but for its constants.

`--start FOLDER` goes on from the language model and the mappers of such a folder, with its tokens, in place of from
nothing.

Captions that have no picture are learned from too: the text tower says where their picture would lie in CLIP's space,
which a linear map and the errors of that map on real pairs make look like a picture's embedding (after CapDec, arXiv
2211.00575).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import clipcap.torchvision_schemas  # noqa: F401 (before transformers is imported)

# isort: split
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.device import autocast, training_attention
from clipcap.encoder import Encoder
from clipcap.mapper import MapperConfig, TransformerMapper
from clipcap.training import standardize
from clipcap.training.loop import Computed
from clipcap.training.options import Schedule
from clipcap.training.packing import pack
from recipes.averaged import Averaged, Optimizers, train
from recipes.command import new_parser, parsed
from recipes.photos import MANNERS, STARTS, Photo, load_photos, load_texts
from recipes.styled_captions import add_styled_captions
from recipes.tokenizer import VOCABULARY, train_tokenizer

WIDTH, LAYERS, HEADS, LENGTH = 320, 5, 5, 128
CPU = torch.device("cpu")
MAPPER = MapperConfig("transformer", embedding_size=512, lm_size=WIDTH, prefix_length=8, clip_length=4, layers=3)
PEAK, WARM_UP = 2e-3, 0.055  # of the learning rate; the second is a share of all steps
EPOCHS, EPOCH = 10, 300  # and steps of each: pools are drawn from without end
BATCH = 96  # rows a step: a picture in one manner with up to CAPTIONS captions
CAPTIONS = 3
LONGEST = 48  # tokens of a caption that is learned from
PART = 32  # rows of like length that are computed together, so that little is padding
# How many rows of a step come from where.
SHARES = {"people": 0.24, "written": 0.22, "humorous": 0.16, "romantic": 0.14, "web": 0.06, "no picture": 0.18}
NOISE = 0.3  # added to embeddings, in deviations of each dimension


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
            activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@dataclass(frozen=True)
class Row:
    """A picture in one manner: its embedding's index, the manner's, and the token ids of its captions."""

    embedding: int
    manner: int
    captions: list[list[int]]


class Joint(nn.Module):
    """The LM with one mapper that has a set of constants a manner."""

    def __init__(self, model: GPT2LMHeadModel, embeddings: Tensor) -> None:
        super().__init__()
        self.model: GPT2LMHeadModel = model.requires_grad_(True)
        self.mapper = TransformerMapper(MAPPER)
        standardize(self.mapper, embeddings)
        self.constants = nn.Parameter(self.mapper.constant.detach().repeat(len(MANNERS), 1, 1))
        self.mapper.constant.requires_grad_(False)

    def prefixes(self, embeddings: Tensor, manners: Tensor) -> Tensor:
        """(B, E) embeddings, (B,) indices of manners -> (B, K, D)"""
        clip = self.mapper.linear(embeddings).view(-1, MAPPER.clip_length, WIDTH)
        x = torch.cat([clip, self.constants[manners].to(clip.dtype)], dim=1)
        for block in self.mapper.blocks:
            x = block(x)
        return x[:, MAPPER.clip_length :]

    @torch.no_grad()
    def start_from(self, models: Path) -> None:
        """Take over the weights of the folder's LM, the factual style's mapper, and of each style its constants."""
        stored = GPT2LMHeadModel.from_pretrained(models / "lm", dtype=torch.float32)
        self.model.load_state_dict(stored.state_dict())
        mappers = {style: load_mapper(models / "styles" / f"{style}.safetensors").mapper for style in STARTS}
        self.mapper.load_state_dict(mappers["factual"].state_dict())
        styles = {manner: style for style, manner in STARTS.items()}
        for place, manner in enumerate(MANNERS):
            constant = mappers[styles.get(manner, "factual")].get_parameter("constant")
            self.constants[place] = constant

    def losses(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        """Cross-entropy (N,) of every token of the rows, in some order, given their embeddings (B, E)."""
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i].captions)))
        parts = [order[first : first + PART] for first in range(0, len(order), PART)]
        return torch.cat([self._losses(embeddings[part], [rows[i] for i in part]) for part in parts])

    def _losses(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        batch = pack([row.captions for row in rows], MAPPER.prefix_length, 0)
        prefixes = self.prefixes(embeddings, torch.tensor([row.manner for row in rows]))
        x = torch.cat([prefixes, self.model.transformer.wte(batch.tokens)], dim=1)
        hidden = self.model.transformer(
            inputs_embeds=x, attention_mask=batch.mask.to(x.dtype), position_ids=batch.positions
        ).last_hidden_state[:, MAPPER.prefix_length - 1 :]
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch.source])
        return F.cross_entropy(logits.float(), batch.target, reduction="none")

    def export(self, manner: str) -> TransformerMapper:
        """The mapper of one manner by itself."""
        mapper = TransformerMapper(MAPPER)
        state = self.mapper.state_dict()
        state["constant"] = self.constants[MANNERS.index(manner)]
        mapper.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
        return mapper


@dataclass(frozen=True)
class Pool:
    """Rows to draw from without end, each once before any comes again; pools of other names draw otherwise."""

    name: str
    rows: list[Row]

    def drawn(self, first: int, count: int) -> list[Row]:
        """The `count` rows that follow the `first` ones."""
        size = len(self.rows)
        turns = range(first // size, (first + count - 1) // size + 1)
        order = [row for turn in turns for row in random.Random(f"{self.name} {turn}").sample(self.rows, size)]
        return order[first % size :][:count]


def pictures_of(encoder: Encoder, texts: list[str], photos: list[Photo], seed: int) -> Tensor:
    """Where pictures of `texts` might lie in CLIP's space: (T, E), like the embeddings of pictures.

    A ridge regression leads from the text tower's space into the image tower's; what it misses on pictures is added
    to other texts at random, so that they are as far from the text as a picture is.
    """
    pairs = [
        (photo, caption) for photo in photos for m in ("people", "written") for caption in photo.captions.get(m, [])
    ]
    pairs = random.Random(seed).sample(pairs, min(30000, len(pairs)))
    target = torch.stack([torch.from_numpy(photo.embedding).float() for photo, _ in pairs])
    source = F.normalize(encoder.encode_text([text for _, text in pairs]), dim=-1)
    mean, offset = source.mean(0), target.mean(0)
    x, y = source - mean, target - offset
    weights = torch.linalg.solve(x.T @ x + 1.0 * torch.eye(x.shape[1]), x.T @ y)
    missed: Tensor = y - x @ weights
    explained = 1 - float(missed.square().sum() / y.square().sum())
    print(f"the text tower explains {explained:.0%} of the variance of pictures' embeddings", flush=True)
    found: Tensor = (F.normalize(encoder.encode_text(texts), dim=-1) - mean) @ weights + offset
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(missed), (len(texts),), generator=generator)
    return found + 0.8 * missed[drawn]


def rows_of(photos: list[Photo], tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Row]]:
    """By manner, the pictures that have captions in it; a row's embedding is the picture's index."""
    rows: dict[str, list[Row]] = {manner: [] for manner in MANNERS}
    ids_of = iter(tokenizer([c for p in photos for captions in p.captions.values() for c in captions])["input_ids"])
    for index, photo in enumerate(photos):
        for manner, captions in photo.captions.items():
            if tokens := [ids for ids in islice(ids_of, len(captions)) if len(ids) < LONGEST]:
                rows[manner].append(Row(index, MANNERS.index(manner), tokens))
    return rows


@dataclass(frozen=True)
class Checked:
    """The dev pictures' embeddings and rows, by dev set and manner."""

    parts: dict[str, tuple[Tensor, list[Row]]]

    @classmethod
    def of(cls, photos: list[Photo], tokenizer: PreTrainedTokenizerFast) -> "Checked":
        """What is there to check with of these pictures."""
        parts = {}
        for name in ("flickr8k", "coco", "mixed"):
            own = [photo for photo in photos if photo.dev_set == name]
            embeddings = torch.stack([torch.from_numpy(photo.embedding).float() for photo in own])
            for manner, rows in rows_of(own, tokenizer).items():
                if rows:
                    parts[f"{name} {manner}"] = embeddings[[row.embedding for row in rows]], rows
        return cls(parts)

    @property
    def described(self) -> list[object]:
        """All of it, in a list."""
        return [each for name, (embeddings, rows) in self.parts.items() for each in (name, embeddings, rows)]

    @torch.inference_mode()
    def losses(self, joint: Joint) -> dict[str, float]:
        """Mean cross-entropy a token; it is printed, too."""
        joint.eval()
        found = {name: float(joint.losses(*part).mean()) for name, part in self.parts.items()}
        print("on dev:", {name: round(loss, 3) for name, loss in found.items()}, flush=True)
        return found


class Task(Averaged[Joint]):
    """What the library's loop trains: LM and mapper on rows of the pools, by their `embeddings` (N, E)."""

    def __init__(
        self,
        optimizer: Optimizers[Joint],
        embeddings: Tensor,
        pools: Sequence[Pool],
        checked: Checked,
        schedule: Schedule,
    ) -> None:
        super().__init__(
            optimizer, MAPPER, BATCH, CAPTIONS, EPOCH, SHARES, NOISE, pools, embeddings, *checked.described, schedule
        )
        self.embeddings, self.checked = embeddings, checked
        self.pools = {pool.name: pool for pool in pools}
        self.deviation = embeddings.std(0)

    def batches(self, epoch: int) -> list[list[Row]]:
        rng = random.Random(epoch)
        parts = []
        for name, share in SHARES.items():
            count = round(share * BATCH)
            drawn = self.pools[name].drawn(epoch * EPOCH * count, EPOCH * count)
            some = [Row(r.embedding, r.manner, rng.sample(r.captions, min(CAPTIONS, len(r.captions)))) for r in drawn]
            parts.append([some[first : first + count] for first in range(0, len(some), count)])
        return [[row for rows in batch for row in rows] for batch in zip(*parts, strict=True)]

    def compute_gradients(self, batch: list[Row], step: int) -> Computed:
        self.module.train()
        chosen = self.embeddings[[row.embedding for row in batch]]
        noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(step))
        with training_attention(CPU):
            with autocast(CPU):
                losses = self.module.losses(chosen + NOISE * self.deviation * noise, batch)
            loss = losses.mean()
            loss.backward()
        return Computed(loss.item(), sum(len(row.captions) for row in batch), weight=len(losses))

    def validate(self, on_batch: Callable[[], None]) -> float:
        on_batch()
        return fmean(self.checked.losses(self.optimizer.average).values())


def save_lm(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the LM in half precision, with its tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = new_parser(
        __doc__,
        models="holds encoder/ with both halves; receives lm/",
        work="receives the state, and what recipes.mappers starts from",
    )
    parser.add_argument("--start", type=Path, help="a folder of models of this architecture to go on from")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of {EPOCH} steps (default: %(default)s)")
    parser.add_argument("--peak", type=float, default=PEAK, help="the highest learning rate (default: %(default)s)")
    arguments = parsed(parser)
    torch.manual_seed(0)
    photos = add_styled_captions(load_photos(arguments.data))
    learned = [photo for photo in photos if not photo.dev_set]
    texts = load_texts(arguments.data, photos)
    own = [caption for photo in learned for captions in photo.captions.values() for caption in captions]
    if arguments.start:  # its weights belong to its own token ids
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.start / "lm")
    else:
        tokenizer = train_tokenizer(own + texts)
    encoder = Encoder.load(f"local-dir:{arguments.models / 'encoder'}", device="cpu")

    real = torch.stack([torch.from_numpy(photo.embedding).float() for photo in learned])
    embeddings = torch.cat([real, pictures_of(encoder, texts, learned, seed=0)])
    people = MANNERS.index("people")
    pools = [Pool(manner, rows) for manner, rows in rows_of(learned, tokenizer).items()]
    tokens = tokenizer(texts)["input_ids"] if texts else []
    unseen = [Row(len(learned) + i, people, [ids]) for i, ids in enumerate(tokens) if 4 < len(ids) < LONGEST]
    pools.append(Pool("no picture", unseen))
    print({pool.name: len(pool.rows) for pool in pools}, flush=True)
    if empty := [pool.name for pool in pools if not pool.rows]:
        parser.error(f"{arguments.data} has no captions of these kinds: {', '.join(empty)}; see recipes/photos.py")
    checked = Checked.of(photos, tokenizer)
    joint = Joint(new_model(), real)
    if arguments.start:
        joint.start_from(arguments.start)
        checked.losses(joint)
    matrices = [
        p for part in (joint.model.transformer.h, joint.mapper.blocks) for p in part.parameters() if p.ndim == 2
    ]
    schedule = Schedule(arguments.epochs, arguments.peak, WARM_UP, clip=1.0, patience=arguments.epochs)
    optimizer = Optimizers(joint, matrices, peak=arguments.peak, weight_decay=0.05, average_decay=0.998)
    task = Task(optimizer, embeddings, pools, checked, schedule)
    joint = train(task, optimizer.average, schedule, arguments.work / "language_model.pt")
    checked.losses(joint)
    save_lm(joint.model, tokenizer, arguments.models / "lm")
    for manner in MANNERS:
        checkpoint = MapperCheckpoint(joint.export(manner), None, None)
        save_mapper(checkpoint, arguments.work / f"start-{manner}.safetensors")


if __name__ == "__main__":
    main()
