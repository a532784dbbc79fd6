"""Show the teacher random views of the photos, and keep what it makes of them.

    python -m recipes.views --data DATA --teacher TEACHER.onnx --work WORK

A student that only ever sees the whole photos learns their embeddings by heart: cosine 0.90 to the teacher on those,
0.83 on others. A crop in other colours is a picture of its own, as long as the teacher has looked at that very crop
(Beyer et al., arXiv 2106.05237). Five views a second and core on a CPU that multiplies bfloat16; needs onnx beside the
project's requirements. What is stored is complete or not there, so a call that was cut off goes on where it was.
"""

import argparse
import importlib.util
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance

from recipes.photos import load_photos

SIZE, BATCH = 224, 16
Pictures = npt.NDArray[np.uint8]  # (N, 224, 224, 3)


def random_view(path: Path, rng: random.Random) -> Image.Image:
    """A crop of 30 to 100 % of a photo, perhaps mirrored, a little brighter or darker, greyer or more colourful."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    for _ in range(20):
        area, ratio = rng.uniform(0.3, 1.0) * image.width * image.height, (4 / 3) ** rng.uniform(-1, 1)
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if width <= image.width and height <= image.height:
            break
    else:
        width, height = image.size
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    view = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(rng.uniform(0.7, 1.3))
    return view


def stored_views(work: Path) -> Iterator[tuple[Path, Pictures, npt.NDArray[np.float16]]]:
    """The rounds that are there: file, pictures, and the teacher's embeddings (N, 512)."""
    for path in sorted(work.glob("views-*.npz")):
        with np.load(path) as stored:
            yield path, stored["pictures"], stored["embeddings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument(
        "--teacher", type=Path, required=True, help="what `load_teacher` of clip_vitb16/teacher.py reads"
    )
    parser.add_argument("--work", type=Path, required=True, help="1 GB a round of intermediate results")
    parser.add_argument("--rounds", type=int, default=2, help="views of each photo (2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    module: Any = _import(arguments.data / "clip_vitb16" / "teacher.py")
    teacher = module.load_teacher(str(arguments.teacher)).bfloat16()
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (module.CLIP_MEAN, module.CLIP_STD))
    photos = [photo for photo in load_photos(arguments.data) if photo.split in ("train", "extra")]
    for number in range(arguments.rounds):
        path = arguments.work / f"views-{number}.npz"
        if path.exists():
            continue
        pictures = np.zeros((len(photos), SIZE, SIZE, 3), np.uint8)
        embeddings = np.zeros((len(photos), 512), np.float16)
        started = time.monotonic()
        for first in range(0, len(photos), BATCH):
            chunk = slice(first, min(first + BATCH, len(photos)))
            for row in range(chunk.start, chunk.stop):
                pictures[row] = np.array(random_view(photos[row].path, random.Random(f"{number} {row}")))
            x = (torch.from_numpy(pictures[chunk]).permute(0, 3, 1, 2).float() / 255 - mean) / std
            with torch.inference_mode():
                embeddings[chunk] = teacher(pixel_values=x.bfloat16()).image_embeds.float().half().numpy()
            if first % (20 * BATCH) == 0:
                rate = chunk.stop / (time.monotonic() - started)
                print(f"round {number}: {chunk.stop}/{len(photos)}, {rate:.1f}/s", flush=True)
        partial = path.with_name(f"partial-{path.name}")
        np.savez(partial, pictures=pictures, embeddings=embeddings)
        partial.rename(path)


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("teacher", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
