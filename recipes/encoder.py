"""Distil CLIP ViT-B/16's image tower into TinyViT-5M and store it as an open_clip model.

    python -m recipes.encoder --data DATA --out models/mini/encoder --work WORK

The student starts from TinyViT's ImageNet-22k weights. Its first two stages, which are general and take most of the
time, stay frozen, so what they make of each picture is computed once and kept on disk; the rest is trained on that
against the teacher's embedding: of the whole photos, and of the random views that `recipes.views` has left in WORK.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip import create_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.photos import Photo, load_photos
from recipes.schedule import Average, autocast, learning_rate
from recipes.views import Pictures, stored_views

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "tiny_vit_5m_224",
            "timm_pool": "avg",
            "timm_proj": "mlp",
            "timm_proj_bias": True,
            "image_size": 224,
        },
        # open_clip has no model without a text tower; this one is as small as it gets, untrained and unused.
        "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}
Maps = npt.NDArray[np.float16]  # (N, 160, 14, 14): what the frozen part makes of N pictures


class Frozen(nn.Module):
    """TinyViT up to the blocks of its third stage: (B, 3, 224, 224) -> (B, 160, 14, 14)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(trunk.patch_embed, trunk.stages[0], trunk.stages[1], trunk.stages[2].downsample)

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.stem(pixels)
        return maps


class Trained(nn.Module):
    """The rest of the tower: (B, 160, 14, 14) -> (B, 512)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.blocks, self.stage = tower.trunk.stages[2].blocks, tower.trunk.stages[3]
        self.pool, self.head = tower.trunk.head, tower.head

    def forward(self, maps: Tensor) -> Tensor:
        x = self.blocks(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        embeddings: Tensor = self.head(self.pool(self.stage(x)))
        return embeddings


def picture(photo: Photo) -> Image.Image:
    """The whole photo, 224x224."""
    with Image.open(photo.path) as opened:
        return ImageOps.fit(opened.convert("RGB"), (224, 224), Image.Resampling.BICUBIC)


def new_tower(data: Path, folder: Path) -> Any:
    """open_clip's own model of CONFIG, its trunk filled with the ImageNet-22k weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = create_model(f"local-dir:{folder}", load_weights=False)
    (weights,) = (data / "tiny_vit").glob("*.safetensors")
    model.visual.trunk.load_state_dict(load_file(weights))
    return model


def feature_maps(frozen: Frozen, pictures: Pictures, path: Path) -> Maps:
    """(N, 160, 14, 14) maps of (N, 224, 224, 3) pictures, computed once and kept in `path`."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(len(pictures), 160, 14, 14))
        mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (MEAN, STD))
        started = time.monotonic()
        for first in range(0, len(pictures), 32):
            x = torch.from_numpy(pictures[first : first + 32]).permute(0, 3, 1, 2)
            with torch.inference_mode(), autocast():
                out[first : first + len(x)] = frozen.eval()((x.float() / 255 - mean) / std).half().numpy()
            if first % 640 == 0:
                done = first + len(x)
                print(f"{path.name}: {done}/{len(pictures)}, {done / (time.monotonic() - started):.1f}/s", flush=True)
        out.flush()
        partial.rename(path)
    maps: Maps = np.load(path, mmap_mode="r")
    return maps


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Direction, and each photo's similarity to the others of the batch (relational distillation).

    Args:
        student, teacher: (B, E) embeddings, not normalised.
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    direction = 1 - (s * t).sum(1).mean()
    scale = 20.0
    relation = F.kl_div(
        F.log_softmax(scale * s @ t.T, dim=1),
        F.log_softmax(scale * t @ t.T, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    length = F.mse_loss(student.norm(dim=1), teacher.norm(dim=1))
    return 4 * direction + relation + 0.01 * length


Source = tuple[Maps, int, Tensor]  # a picture's maps: the array and the row; and the teacher's embedding, (512,)


def train(trained: Trained, sources: list[Source], dev: list[Source], epochs: int, peak: float, seed: int) -> None:
    """Train on the sources; report the cosine on those of `dev`. `trained` ends as the running average of its weights.

    The third stage's blocks but the last learn at half the rate: they know most of what they need.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    early = list(trained.blocks[:-1].parameters())
    late = [p for p in trained.parameters() if all(p is not other for other in early)]
    groups = [{"params": early, "share": 0.5}, {"params": late, "share": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    average = Average(trained, decay=0.998)
    steps = epochs * (len(sources) // BATCH)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        trained.train()
        order = rng.sample(sources, len(sources))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * learning_rate(step, steps, peak, 0.0)
            maps, teacher = _stacked(order[first : first + BATCH])
            with autocast():
                embeddings = trained(maps)
            loss = distillation_loss(embeddings.float(), teacher)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            average.update(trained)
            step += 1
            if step % 20 == 0:
                print(f"{step}/{steps} loss {loss:.4f} {time.monotonic() - started:.0f}s", flush=True)
        cosines = [f"{_cosine(average.module, rows):.4f}" for rows in (dev, sources[:640])]
        print(f"epoch {epoch + 1}: cosine on dev {cosines[0]}, on training photos {cosines[1]}", flush=True)
    trained.load_state_dict(average.module.state_dict())


def _stacked(sources: list[Source]) -> tuple[Tensor, Tensor]:
    maps = torch.from_numpy(np.stack([maps[row] for maps, row, _ in sources])).float()
    return maps, torch.stack([teacher for *_, teacher in sources])


@torch.inference_mode()
def _cosine(trained: Trained, sources: list[Source]) -> float:
    """The mean cosine to the teacher."""
    trained.eval()
    total = 0.0
    for first in range(0, len(sources), BATCH):
        maps, teacher = _stacked(sources[first : first + BATCH])
        total += F.cosine_similarity(trained(maps), teacher).sum().item()
    return total / len(sources)


def save_tower(model: Any, trained: nn.Module, folder: Path) -> None:
    """Write the open_clip model, its trained part replaced by `trained`, in half precision."""
    Trained(model.visual).load_state_dict(trained.state_dict())
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the open_clip model")
    parser.add_argument("--work", type=Path, required=True, help="holds views-*.npz; 5 GB of intermediate results")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    photos = load_photos(arguments.data)
    torch.manual_seed(0)
    model = new_tower(arguments.data, arguments.out)
    frozen, trained = Frozen(model.visual.trunk), Trained(model.visual)
    whole = np.stack([np.array(picture(photo)) for photo in photos])
    maps = feature_maps(frozen, whole, arguments.work / "maps-photos.npy")
    targets = torch.from_numpy(np.stack([photo.teacher for photo in photos])).float()
    sources = [(maps, i, targets[i]) for i, photo in enumerate(photos) if photo.split in ("train", "extra")]
    dev = [(maps, i, targets[i]) for i, photo in enumerate(photos) if photo.split == "dev"]
    for path, pictures, embeddings in stored_views(arguments.work):
        maps = feature_maps(frozen, pictures, arguments.work / f"maps-{path.stem}.npy")
        sources += [(maps, i, target) for i, target in enumerate(torch.from_numpy(embeddings).float())]
    train(trained, sources, dev, arguments.epochs, 1e-3, seed=0)
    save_tower(model, trained, arguments.out)


if __name__ == "__main__":
    main()
