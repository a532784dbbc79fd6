"""Distil CLIP ViT-B/16's image tower into TinyViT-5M and store it as an open_clip model.

    python -m recipes.encoder --data DATA --out models/mini/encoder --work WORK

The student starts from TinyViT's ImageNet-22k weights. Everything up to the last block of its third stage
stays frozen, so its feature maps are computed once for the photo and once for its mirror image and kept on disk;
the last block, the fourth stage and a projection are trained on them, randomly cropped, against the teacher's
embedding of the whole photo. On two CPU cores that is the difference between an hour and a day.
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
from recipes.schedule import Average, learning_rate

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
VIEWS = ("photo", "mirror")
Maps = npt.NDArray[np.float16]  # (N, 14, 14, 160): a view's feature maps of every photo


def view_of(photo: Photo, view: str) -> Image.Image:
    """The 224x224 picture of `photo`, or its mirror image."""
    with Image.open(photo.path) as opened:
        image = ImageOps.fit(opened.convert("RGB"), (224, 224), Image.Resampling.BICUBIC)
    return ImageOps.mirror(image) if view == "mirror" else image


class Frozen(nn.Module):
    """TinyViT up to the last block of its third stage: (B, 3, 224, 224) -> (B, 14, 14, 160)."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        third = trunk.stages[2]
        self.stem = nn.Sequential(trunk.patch_embed, trunk.stages[0], trunk.stages[1], third.downsample)
        self.blocks = third.blocks[:-1]

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.blocks(self.stem(pixels).permute(0, 2, 3, 1))
        return maps


class Trained(nn.Module):
    """The rest of the tower: (B, 14, 14, 160) -> (B, 512)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.block, self.stage = tower.trunk.stages[2].blocks[-1], tower.trunk.stages[3]
        self.pool, self.head = tower.trunk.head, tower.head

    def forward(self, maps: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.pool(self.stage(self.block(maps).permute(0, 3, 1, 2))))
        return embeddings


def new_tower(data: Path, folder: Path) -> Any:
    """open_clip's own model of CONFIG, its trunk filled with the ImageNet-22k weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = create_model(f"local-dir:{folder}", load_weights=False)
    (weights,) = (data / "tiny_vit").glob("*.safetensors")
    model.visual.trunk.load_state_dict(load_file(weights))
    return model


def feature_maps(frozen: Frozen, photos: list[Photo], view: str, work: Path) -> Maps:
    """(N, 14, 14, 160) maps of one view of every photo, computed once and kept in `work`."""
    path = work / f"maps-{view}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial")
        shape = (len(photos), 14, 14, 160)
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (MEAN, STD))
        started = time.monotonic()
        with torch.inference_mode():
            example = torch.zeros(32, 3, 224, 224)
            fast = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(frozen.eval(), example)))
            for first in range(0, len(photos), 32):
                chunk = photos[first : first + 32]
                pixels = torch.stack([torch.from_numpy(np.array(view_of(p, view))) for p in chunk])
                x = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
                out[first : first + len(chunk)] = (fast if len(chunk) == 32 else frozen)(x).half().numpy()
                if first % 640 == 0:
                    done = first + len(chunk)
                    print(f"{view}: {done}/{len(photos)}, {done / (time.monotonic() - started):.1f}/s", flush=True)
        out.flush()
        partial.rename(path)
    maps: Maps = np.load(path, mmap_mode="r")
    return maps


def draw_maps(views: list[Maps], rows: list[int], rng: random.Random) -> Tensor:
    """(B, 14, 14, 160) maps of the given photos, each from a view drawn at random, half of them cropped."""
    drawn = []
    for row in rows:
        part = torch.from_numpy(rng.choice(views)[row]).float().permute(2, 0, 1)[None]
        if rng.random() < 0.5:
            height, width = rng.randint(10, 13), rng.randint(10, 13)
            top, left = rng.randint(0, 14 - height), rng.randint(0, 14 - width)
            part = part[:, :, top : top + height, left : left + width]
            part = F.interpolate(part, size=(14, 14), mode="bilinear", align_corners=False)
        drawn.append(part[0].permute(1, 2, 0))
    return torch.stack(drawn)


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


def train(trained: Trained, views: list[Maps], photos: list[Photo], epochs: int, peak: float, seed: int) -> None:
    """Train on the photos of train and extra, each epoch from views drawn at random; report the cosine on dev.

    `trained` ends with the running average of its weights.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rows = [i for i, photo in enumerate(photos) if photo.split in ("train", "extra")]
    dev = [i for i, photo in enumerate(photos) if photo.split == "dev"]
    teacher = torch.from_numpy(np.stack([photo.teacher for photo in photos])).float()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(trained, decay=0.997)
    steps = epochs * (len(rows) // 64)
    step, started = 0, time.monotonic()
    for epoch in range(epochs):
        trained.train()
        order = rng.sample(rows, len(rows))
        for first in range(0, len(rows) - 63, 64):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak, 0.0)
            chosen = order[first : first + 64]
            loss = distillation_loss(trained(draw_maps(views, chosen, rng)), teacher[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            average.update(trained)
            step += 1
            if step % 20 == 0:
                print(f"{step}/{steps} loss {loss:.4f} {time.monotonic() - started:.0f}s", flush=True)
        cosine = F.cosine_similarity(embed(average.module, views[0], dev), teacher[dev]).mean()
        seen = F.cosine_similarity(embed(average.module, views[0], rows[:640]), teacher[rows[:640]]).mean()
        print(f"epoch {epoch + 1}: cosine on dev {cosine:.4f}, on training photos {seen:.4f}", flush=True)
    trained.load_state_dict(average.module.state_dict())


@torch.inference_mode()
def embed(trained: nn.Module, maps: Maps, rows: list[int]) -> Tensor:
    """(N, 512) embeddings of the given rows of a view."""
    trained.eval()
    parts = [torch.from_numpy(maps[rows[i : i + 64]]).float() for i in range(0, len(rows), 64)]
    return torch.cat([trained(part) for part in parts])


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
    parser.add_argument("--work", type=Path, required=True, help="1.5 GB of intermediate results")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    photos = load_photos(arguments.data)
    torch.manual_seed(0)
    model = new_tower(arguments.data, arguments.out)
    frozen, trained = Frozen(model.visual.trunk), Trained(model.visual)
    views = [feature_maps(frozen, photos, view, arguments.work) for view in VIEWS]
    train(trained, views, photos, arguments.epochs, 1e-3, seed=0)
    save_tower(model, trained, arguments.out)


if __name__ == "__main__":
    main()
