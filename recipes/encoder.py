"""Distil CLIP ViT-B/16's image tower into TinyViT-5M and store it as an open_clip model.

    python -m recipes.encoder --data DATA --teacher TEACHER.onnx --out models/mini/encoder [--minutes 7]

A student that only ever sees the whole photos learns their embeddings by heart (cosine 0.90 to the teacher on those,
0.83 on others). So teacher and student look at the same random views together, of which no two are alike: crops in
other colours, half of them blended with a second photo (Beyer et al., arXiv 2106.05237). The student starts from
TinyViT's ImageNet-22k weights and all of it learns, except for what its batch normalisation knows about photos.

What is seen in crops looks larger than it will in whole photos, so at the end the last layers are made familiar with
those (Touvron et al., arXiv 1906.06423), which takes little time and brings the larger part of the gain.

Needs onnx beside the project's requirements, and a GPU: a million views want minutes there, and days on two cores.
"""

import argparse
import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import create_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.device import pick_device
from recipes.photos import Photo, load_photos
from recipes.schedule import Average, autocast, learning_rate

BATCH = 256
PEAK, HEAD_SHARE = 6e-4, 2.0  # the learning rate, and how much faster the projection learns, which starts from nothing
SETTLING_BATCH, SETTLING_PEAK = 32, 3e-4
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


def new_model(data: Path, folder: Path) -> Any:
    """open_clip's own model of CONFIG, its trunk filled with the ImageNet-22k weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = create_model(f"local-dir:{folder}", load_weights=False)
    (weights,) = (data / "tiny_vit").glob("*.safetensors")
    model.visual.trunk.load_state_dict(load_file(weights))
    return model


def load_teacher(data: Path, file: Path, device: torch.device) -> Any:
    """The teacher of clip_vitb16/teacher.py: (B, 3, 224, 224) pixels in [0, 1] -> (B, 512) embeddings."""
    spec = importlib.util.spec_from_file_location("teacher", data / "clip_vitb16" / "teacher.py")
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load_teacher(str(file)).to(device, torch.bfloat16)

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        normal = normalised(pixels, module.CLIP_MEAN, module.CLIP_STD)
        found: Tensor = model(pixel_values=normal.bfloat16()).image_embeds.float()
        return found

    return embed


def whole(photo: Photo) -> Image.Image:
    """The whole photo, 224x224."""
    with Image.open(photo.path) as opened:
        return ImageOps.fit(opened.convert("RGB"), (224, 224), Image.Resampling.BICUBIC)


def pictures_of(photos: list[Photo]) -> Tensor:
    """(N, 3, 224, 224) bytes of the whole photos."""
    with ThreadPoolExecutor() as pool:
        return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in pool.map(whole, photos)])


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) pixels in [0, 1], by the mean and deviation of each channel."""
    m, s = (torch.tensor(c, device=pixels.device).view(1, 3, 1, 1) for c in (mean, std))
    return (pixels - m) / s


def random_views(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) bytes -> as many views in [0, 1], drawn at random, half of them blended with another's.

    A view shows 25 to 100 % of a photo, perhaps mirrored, brighter or darker, greyer or more colourful; one in five
    shows the whole photo as it is, for that is what the student will be asked about.
    """
    count, device = len(pictures), pictures.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    whole = uniform(0, 1) < 0.2
    area, ratio = uniform(0.25, 1.0), (4 / 3) ** uniform(-1, 1)
    width = torch.where(whole, 1.0, (area * ratio).sqrt().clamp(max=1))
    height = torch.where(whole, 1.0, (area / ratio).sqrt().clamp(max=1))
    left, top = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    mirror = uniform(0, 1).sub(0.5).sign()
    views = resampled(pictures.float() / 255, width * mirror, height, left, top)

    brightness, contrast, colour = (
        torch.where(whole, 1.0, uniform(0.7, 1.3)).view(-1, 1, 1, 1) for _ in ("brightness", "contrast", "colour")
    )
    views = views * brightness
    views = torch.lerp(views.mean((1, 2, 3), keepdim=True), views, contrast)
    views = torch.lerp(views.mean(1, keepdim=True), views, colour).clamp(0, 1)

    blended = count // 2
    weight = uniform(0, 1)[:blended].view(-1, 1, 1, 1)
    return torch.cat([torch.lerp(views[:blended], views[count - blended :], weight), views[blended:]])


def resampled(images: Tensor, width: Tensor, height: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The part of each of (B, C, H, W) images that is so wide and high (shares; mirrored where negative), its middle at
    `x` and `y` (from -1 to 1), enlarged to H by W."""
    zero = torch.zeros_like(width)
    place = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Direction, and each view's similarity to the others of the batch (relational distillation).

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


class Frozen(nn.Module):
    """TinyViT up to the last block of its third stage: (B, 3, 224, 224) -> (B, 14, 14, 160)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        third = tower.trunk.stages[2]
        self.stem = nn.Sequential(
            tower.trunk.patch_embed, tower.trunk.stages[0], tower.trunk.stages[1], third.downsample
        )
        self.blocks = third.blocks[:-1]

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.blocks(self.stem(pixels).permute(0, 2, 3, 1))
        return maps


class LastLayers(nn.Module):
    """The rest of the tower: (B, 14, 14, 160) -> (B, 512)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.block, self.stage = tower.trunk.stages[2].blocks[-1], tower.trunk.stages[3]
        self.pool, self.head = tower.trunk.head, tower.head

    def forward(self, maps: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.pool(self.stage(self.block(maps).permute(0, 3, 1, 2))))
        return embeddings


def training_mode(module: nn.Module) -> None:
    """As `train()`, but what batch normalisation knows about photos stays as it is."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def train(tower: Any, teacher: Any, pictures: Tensor, dev: tuple[Tensor, Tensor], seconds: float) -> None:
    """Train all of the student on random views for a time; `tower` ends with the running average of its weights.

    Args:
        tower: the student, (B, 3, 224, 224) normalised pixels -> (B, 512).
        pictures: (N, 3, 224, 224) bytes on the device that trains.
        dev: (M, 3, 224, 224) bytes, and the teacher's (M, 512) embeddings.
    """
    device = pictures.device
    head = list(tower.head.parameters())
    trunk = list(tower.trunk.parameters())
    groups = [{"params": trunk, "share": 1.0}, {"params": head, "share": HEAD_SHARE}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(tower, decay=0.998)
    training_mode(tower)
    step, started, told = 0, time.monotonic(), 0.0
    while (taken := time.monotonic() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(taken / seconds, PEAK, 0.0, 0.03)
        views = random_views(pictures[torch.randint(len(pictures), (BATCH,), device=device)])
        targets = teacher(views)
        with autocast(device):
            embeddings = tower(normalised(views, MEAN, STD).contiguous(memory_format=torch.channels_last))
        loss = distillation_loss(embeddings.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        average.update(tower)
        step += 1
        if step % 20 == 0:
            loss.item()  # waits for the GPU, without which the clock would run ahead of the work
        if taken - told > seconds / 20:
            told = taken
            print(f"{taken:.0f} s, {step * BATCH} views: {report(loss, average.module, dev)}", flush=True)
    tower.load_state_dict(average.module.state_dict())


def settle(tower: Any, pictures: Tensor, targets: Tensor, dev: tuple[Tensor, Tensor], steps: int) -> None:
    """Train the last layers on whole photos, which the student knew as crops so far, and on their mirror images.

    Half of the feature maps are cropped a little, although the label stays: a way of keeping the few layers from
    learning the photos by heart.

    Args:
        targets: (N, 512), the teacher's embeddings of `pictures`, as they are.
    """
    device = pictures.device
    frozen, last = Frozen(tower).eval(), LastLayers(tower)
    optimizer = torch.optim.AdamW(last.parameters(), lr=SETTLING_PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    average = Average(last, decay=0.99)
    order = torch.empty(0, dtype=torch.long)
    training_mode(last)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, SETTLING_PEAK, 0.0, 50 / steps)
        if len(order) < SETTLING_BATCH:
            order = torch.randperm(len(pictures), device=device)
        chosen, order = order[:SETTLING_BATCH], order[SETTLING_BATCH:]
        with autocast(device):
            pixels = normalised(pictures[chosen].float() / 255, MEAN, STD)
            mirrored = torch.rand(len(pixels), 1, 1, 1, device=device) < 0.5
            maps = frozen(torch.where(mirrored, pixels.flip(3), pixels)).float()
            embeddings = last(cropped(maps))
        loss = distillation_loss(embeddings.float(), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(last.parameters(), 1.0)
        optimizer.step()
        average.update(last)
        if (step + 1) % 100 == 0:
            print(f"settling {step + 1}/{steps}: loss {loss:.4f}", flush=True)
    last.load_state_dict(average.module.state_dict())
    print(f"settled: {report(loss, tower, dev)}", flush=True)


def cropped(maps: Tensor) -> Tensor:
    """(B, 14, 14, C) feature maps, half of them a part of 10 to 13 rows and columns, drawn at random and enlarged."""
    count, device = len(maps), maps.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    untouched = uniform(0, 1) < 0.5
    width, height = (torch.where(untouched, 1.0, uniform(10 / 14, 13 / 14)) for _ in range(2))
    views = resampled(
        maps.permute(0, 3, 1, 2), width, height, (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
    )
    return views.permute(0, 2, 3, 1)


def report(loss: Tensor, tower: nn.Module, dev: tuple[Tensor, Tensor]) -> str:
    """The last loss, and the mean cosine to the teacher on (M, 3, 224, 224) bytes with (M, 512) embeddings."""
    return f"loss {loss:.4f}, cosine on dev {F.cosine_similarity(embed(tower, dev[0]), dev[1]).mean():.4f}"


@torch.inference_mode()
def embed(tower: nn.Module, pictures: Tensor) -> Tensor:
    """(N, 512) embeddings of (N, 3, 224, 224) bytes."""
    tower.eval()
    parts = [tower(normalised(part.float() / 255, MEAN, STD)).float() for part in pictures.split(BATCH)]
    return torch.cat(parts)


def save(model: Any, folder: Path) -> None:
    """Write the open_clip model in half precision."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    save_file({name: t.cpu().contiguous() for name, t in state.items()}, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--teacher", type=Path, required=True, help="the file that clip_vitb16/teacher.py reads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the open_clip model")
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument(
        "--settling", type=int, default=1200, metavar="STEPS", help="on whole photos, at the end (1200)"
    )
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    photos = load_photos(arguments.data)
    teacher = load_teacher(arguments.data, arguments.teacher, device)
    torch.manual_seed(0)
    model = new_model(arguments.data, arguments.out).to(device, memory_format=torch.channels_last)
    learned, kept = ([photo for photo in photos if photo.split in splits] for splits in (("train", "extra"), ("dev",)))
    pictures, of_dev = (pictures_of(part).to(device) for part in (learned, kept))
    targets, dev_targets = (
        torch.from_numpy(np.stack([photo.teacher for photo in part])).float().to(device) for part in (learned, kept)
    )
    train(model.visual, teacher, pictures, (of_dev, dev_targets), 60 * arguments.minutes)
    settle(model.visual, pictures, targets, (of_dev, dev_targets), arguments.settling)
    save(model, arguments.out)


if __name__ == "__main__":
    main()
