"""Train the text tower: captions against the embeddings that CLIP's image tower made of their pictures.

    python -m recipes.text_tower --data DATA --models models/base [--minutes 10]

A small Transformer on subwords (open_clip's own) learns to name, among all training pictures, the one that a caption
is about, and among the captions of a batch the one that belongs to a picture (CLIP's loss, arXiv 2103.00020). The
image tower stands still, so its embeddings of all pictures are the negatives of every step.
"""

import argparse
import json
import random
import time
from pathlib import Path

import clipcap.torchvision_schemas  # noqa: F401 (before open_clip is imported)

# isort: split
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.clip_folder import new_text_tower, read_config, save_text_tower, write_config
from clipcap.device import autocast
from clipcap.encoder import encode_tokens
from recipes.photos import Photo, load_photos, load_texts
from recipes.schedule import Average, Optimizers, learning_rate
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help="holds encoder/, of which this makes the text half")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng = random.Random(0)

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

    images = F.normalize(torch.stack([torch.from_numpy(photo.embedding).float() for photo in learned]), dim=-1)
    tokens = tokenize(own)
    rows = iter(range(len(own)))
    captions = [{manner: [next(rows) for _ in found] for manner, found in p.captions.items()} for p in learned]
    scale = nn.Parameter(torch.tensor(20.0).log())
    matrices = [p for p in tower.transformer.parameters() if p.ndim == 2]
    optimizer = Optimizers([*tower.parameters(), scale], matrices, decay=0.1)
    average = Average(tower, decay=0.99)
    started, recent = time.monotonic(), []
    order: list[int] = []
    for step in range(arguments.steps):
        optimizer.set_learning_rate(learning_rate(step / arguments.steps, 3e-3, 0.0, 100 / arguments.steps))
        if len(order) < BATCH:
            order = rng.sample(range(len(learned)), len(learned))
        chosen, order = order[:BATCH], order[BATCH:]
        drawn = []
        for i in chosen:
            (manner,) = rng.choices(list(captions[i]), [WEIGHTS[manner] for manner in captions[i]])
            drawn.append(rng.choice(captions[i][manner]))
        others = torch.randint(len(learned), (OTHERS,))
        others = others[~torch.isin(others, torch.tensor(chosen))]
        by_length = sorted(range(BATCH), key=lambda i: int(tokens[drawn[i]].count_nonzero()))
        chosen, drawn = [chosen[i] for i in by_length], [drawn[i] for i in by_length]
        with autocast(CPU):
            parts = [encode_tokens(tower, part) for part in tokens[drawn].split(PART)]
            texts = F.normalize(torch.cat(parts).float(), dim=-1)
            near = texts @ images[chosen].T
            far = texts @ images[others].T
        temperature = scale.exp().clamp(max=100)
        target = torch.arange(BATCH)
        loss = F.cross_entropy(temperature * torch.cat([near, far], 1).float(), target)
        loss = (loss + F.cross_entropy(temperature * near.T.float(), target)) / 2
        optimizer.step(loss)
        average.update(tower)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            took = time.monotonic() - started
            print(f"{step + 1}/{arguments.steps} loss {sum(recent) / len(recent):.3f} {took:.0f} s", flush=True)
            recent = []
        if (step + 1) % 350 == 0:
            print(report(average.module, tokenize, photos), flush=True)
    save_text_tower(average.module, folder)
    print(json.dumps({"parameters": sum(p.numel() for p in tower.parameters()), "temperature": scale.exp().item()}))


if __name__ == "__main__":
    main()
