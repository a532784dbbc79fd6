"""Train the text tower: captions against the embeddings that CLIP's image tower made of their pictures.

    python -m recipes.text_tower --data DATA --models models/base --work WORK

A small Transformer on subwords (open_clip's own) learns to name, among all training pictures, the one that a caption
is about, and among the captions of a batch the one that belongs to a picture (CLIP's loss, arXiv 2103.00020). The
image tower stands still, so its embeddings of all pictures are the negatives of every step.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.clip_folder import new_text_tower, read_config, save_text_tower, write_config
from clipcap.device import autocast
from clipcap.encoder import encode_tokens
from clipcap.training.loop import Computed
from clipcap.training.options import Schedule
from recipes.averaged import Averaged, Optimizers, train
from recipes.command import new_parser, parsed
from recipes.photos import Photo, load_photos, load_texts
from recipes.tokenizer import VOCABULARY, ending, train_tokenizer

CPU = torch.device("cpu")
TEXT = {
    "context_length": 48,
    "vocab_size": VOCABULARY,
    "hf_tokenizer_name": "local",
    "tokenizer_kwargs": {"clean": "lower"},
    "width": 256,
    "heads": 4,
    "layers": 3,
    "pool_type": "eos",
    "pad_id": 0,
    "eos_id": 0,
}
EPOCHS, WARM_UP = 12, 0.15  # the second of the learning rate, a share of all steps
BATCH, OTHERS = 512, 6144  # captions a step; pictures besides their own that they are told from
PART = 64  # captions of like length that are computed together, so that little is padding
# Styled captions leave out what is there, and names of products say little: they are drawn less often.
WEIGHTS = {"people": 1.0, "written": 1.0, "humorous": 0.35, "romantic": 0.35, "web": 0.35}


def recall(texts: Tensor, images: Tensor, owners: Tensor, k: int) -> float:
    """The share of (T, E) texts whose picture, row `owners` (T,) of the (N, E) images, is among their k nearest."""
    nearest = (F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T).topk(k).indices
    return float((nearest == owners[:, None]).any(1).float().mean())


@torch.inference_mode()
def report(tower: nn.Module, tokenize: open_clip.tokenizer.HFTokenizer, photos: list[Photo]) -> str:
    """Text-to-photo recall on the dev sets."""
    parts = []
    for name in ("flickr8k", "coco", "mixed"):
        found = [photo for photo in photos if photo.dev_set == name]
        captions = [(i, c) for i, photo in enumerate(found) for c in photo.references("factual")]
        tokens = tokenize([c for _, c in captions])
        texts = torch.cat([encode_tokens(tower, part) for part in tokens.split(256)])
        images = torch.stack([torch.from_numpy(photo.embedding).float() for photo in found])
        owners = torch.tensor([i for i, _ in captions])
        scores = " ".join(f"R@{k} {recall(texts, images, owners, k):.3f}" for k in (1, 5, 10))
        parts.append(f"{name} ({len(found)}): {scores}")
    return "; ".join(parts)


class Contrast(nn.Module):
    """The text tower with a scale of its similarities to pictures, and CLIP's loss of them."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.scale = nn.Parameter(torch.tensor(20.0).log())

    def loss(self, tokens: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """Of captions (B, T), those of like length next to each other, with their pictures (B, E) and others (O, E)."""
        with autocast(CPU):
            parts = [encode_tokens(self.tower, part) for part in tokens.split(PART)]
            texts = F.normalize(torch.cat(parts).float(), dim=-1)
            near = texts @ own.T
            far = texts @ others.T
        temperature = self.scale.exp().clamp(max=100)
        target = torch.arange(len(tokens))
        loss = F.cross_entropy(temperature * torch.cat([near, far], 1).float(), target)
        return (loss + F.cross_entropy(temperature * near.T.float(), target)) / 2


@dataclass(frozen=True)
class Captioned:
    """Pictures' embeddings (N, E) of length 1, and of each by manner which of the rows of `tokens` are its captions."""

    images: Tensor
    captions: list[dict[str, list[int]]]
    tokens: Tensor

    @classmethod
    def of(cls, photos: list[Photo], tokenize: open_clip.tokenizer.HFTokenizer) -> "Captioned":
        images = F.normalize(torch.stack([torch.from_numpy(photo.embedding).float() for photo in photos]), dim=-1)
        texts = [c for photo in photos for captions in photo.captions.values() for c in captions]
        rows = iter(range(len(texts)))
        captions = [{manner: [next(rows) for _ in found] for manner, found in p.captions.items()} for p in photos]
        return cls(images, captions, tokenize(texts))

    def drawn(self, chosen: list[int], rng: random.Random) -> list[tuple[int, int]]:
        """Of each of these pictures its number and that of one of its captions, those of like length together."""
        pairs = []
        for i in chosen:
            (manner,) = rng.choices(list(self.captions[i]), [WEIGHTS[manner] for manner in self.captions[i]])
            pairs.append((i, rng.choice(self.captions[i][manner])))
        return sorted(pairs, key=lambda pair: int(self.tokens[pair[1]].count_nonzero()))


class Task(Averaged[Contrast]):
    """What the library's loop trains: the tower on captioned pictures, an epoch of which has each at most once."""

    def __init__(
        self, optimizer: Optimizers[Contrast], learned: Captioned, checked: Captioned, schedule: Schedule
    ) -> None:
        data = [each for part in (learned, checked) for each in (part.images, part.captions, part.tokens)]
        super().__init__(optimizer, TEXT, BATCH, OTHERS, WEIGHTS, schedule, *data)
        self.learned = learned
        pairs = checked.drawn(list(range(len(checked.captions))), random.Random(0))
        self.checked_tokens = checked.tokens[[caption for _, caption in pairs]]
        self.checked_images = checked.images[[image for image, _ in pairs]]

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        rng, count = random.Random(epoch), len(self.learned.captions)
        order = rng.sample(range(count), count)
        return [self.learned.drawn(order[first : first + BATCH], rng) for first in range(0, count - BATCH + 1, BATCH)]

    def compute_gradients(self, batch: list[tuple[int, int]], step: int) -> Computed:
        self.module.train()
        chosen = torch.tensor([image for image, _ in batch])
        generator = torch.Generator().manual_seed(step)
        others = torch.randint(len(self.learned.captions), (OTHERS,), generator=generator)
        others = others[~torch.isin(others, chosen)]
        tokens, images = self.learned.tokens[[caption for _, caption in batch]], self.learned.images
        loss = self.module.loss(tokens, images[chosen], images[others])
        loss.backward()
        return Computed(loss.item(), len(batch), weight=len(batch))

    @torch.no_grad()
    def validate(self, on_batch: Callable[[], None]) -> float:
        on_batch()
        images = self.checked_images
        return self.optimizer.average.loss(self.checked_tokens, images, images[:0]).item()


def main() -> None:
    parser = new_parser(
        __doc__, models="holds encoder/, of which this makes the text half", work="receives the state, to go on from"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parsed(parser)
    torch.manual_seed(0)

    photos = load_photos(arguments.data)
    learned = [photo for photo in photos if not photo.dev_set]
    own = [c for photo in learned for captions in photo.captions.values() for c in captions]
    folder = arguments.models / "encoder"
    ending(train_tokenizer(own + load_texts(arguments.data, photos))).save_pretrained(folder)
    config = read_config(folder)
    config["model_cfg"]["text_cfg"] = TEXT
    write_config(config, folder)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    tower = new_text_tower(config)

    matrices = [p for p in tower.transformer.parameters() if p.ndim == 2]
    schedule = Schedule(arguments.epochs, 3e-3, WARM_UP, clip=1.0, patience=arguments.epochs)
    optimizer = Optimizers(Contrast(tower), matrices, peak=schedule.learning_rate, weight_decay=0.1, average_decay=0.99)
    checked = Captioned.of([photo for photo in photos if photo.split == "dev"], tokenize)
    task = Task(optimizer, Captioned.of(learned, tokenize), checked, schedule)
    average = train(task, optimizer.average, schedule, arguments.work / "text_tower.pt")
    print(report(average.tower, tokenize, photos), flush=True)
    save_text_tower(average.tower, folder)
    temperature = average.scale.exp().item()
    print(json.dumps({"parameters": sum(p.numel() for p in tower.parameters()), "temperature": temperature}))


if __name__ == "__main__":
    main()
