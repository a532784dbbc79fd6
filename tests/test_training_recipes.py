"""The recipes that train from nothing: what was killed goes on, to the models' files."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipcap.clip_folder import load_text_tower, read_config, write_config
from recipes import loop, text_tower
from recipes.schedule import Optimizers

THINGS = ("dog", "cat", "bus", "boat", "kite", "horse", "lamp", "tree")
PLACES = ("on a beach", "in the street", "by a lake", "on a hill", "in the rain")


def rows(name: str, by: str, split: str, count: int) -> list[dict[str, Any]]:
    """Lines of `photos/captions.jsonl`, no two captions alike."""
    found = [f"A {thing} {place}, {name}." for place in PLACES for thing in THINGS][:count]
    return [
        {"image": f"{name}{i}.jpg", "source": "web", "by": by, "split": split, "factual": [caption]}
        for i, caption in enumerate(found)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with forty pictures to train on and ten in each dev set."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("flickr8k", "photos", "coco_cc", "clip_vitb16"):
        (folder / name).mkdir()
    flickr = [{"image": f"f{i}.jpg", "split": "dev", "factual": [f"A {THINGS[i % 8]}, {i}."]} for i in range(10)]
    photos = rows("learned", "written", "train", 40)
    photos += rows("coco", "people", "dev", 10) + rows("mixed", "written", "dev", 10)
    (folder / "flickr8k/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flickr))
    (folder / "photos/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in photos))
    (folder / "coco_cc/captions.json").write_text("[]")
    rng = np.random.default_rng(0)
    stored = {"clip_vitb16/flickr8k": flickr, "photos/clip_vitb16": photos, "clip_vitb16/coco_cc": []}
    for name, found in stored.items():
        embeddings = rng.standard_normal((len(found), 16)).astype(np.float16)
        np.savez(folder / f"{name}.npz", names=[row["image"] for row in found], emb=embeddings)
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models whose encoder lacks a text half, and a recipe for a small one."""
    monkeypatch.setattr(text_tower, "BATCH", 8)
    monkeypatch.setattr(text_tower, "OTHERS", 16)
    monkeypatch.setattr(text_tower, "TEXT", {**text_tower.TEXT, "width": 16, "heads": 2, "layers": 1})
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    write_config({"model_cfg": {"embed_dim": 16, "vision_cfg": vision}}, tmp_path / "encoder")
    return tmp_path


def test_a_text_tower_whose_recipe_was_killed_goes_on_from_its_last_state(
    data: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "REPORT", 1)
    monkeypatch.setattr(loop, "SAVE", 2)
    named = {"data": data, "models": models, "work": models / "work", "steps": 6, "threads": 1}
    monkeypatch.setattr(sys, "argv", ["text_tower", *(f"--{name}={value}" for name, value in named.items())])
    with monkeypatch.context() as patch:
        patch.setattr(text_tower, "losses_of", killed(text_tower.losses_of, batches=5))
        with pytest.raises(KeyboardInterrupt):
            text_tower.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"{n}/6" for n in range(1, 6)]
    state = torch.load(models / "work/text_tower.pt", weights_only=True)
    assert state["step"] == 4

    text_tower.main()
    goes_on, *steps, recalls, summary = capsys.readouterr().out.splitlines()
    assert goes_on.endswith("goes on after step 4")
    assert [line.split()[0] for line in steps] == ["5/6", "6/6"]
    assert "mixed (10): R@1" in recalls
    assert json.loads(summary)["parameters"] > 0
    encoder = models / "encoder"
    stored = load_text_tower(encoder, read_config(encoder)).state_dict()
    before = {name.removeprefix("tower."): tensor for name, tensor in state["average"].items()}
    assert stored.keys() <= before.keys()
    assert all(torch.allclose(tensor, before[name], atol=0.02) for name, tensor in stored.items()), "two steps away"


def killed(losses_of: Any, batches: int) -> Any:
    """The same, but for someone who stops it after so many batches."""

    def found(*arguments: Any) -> Iterator[Tensor]:
        made = losses_of(*arguments)
        yield from (next(made) for _ in range(batches))
        raise KeyboardInterrupt

    return found


def test_what_goes_on_has_the_weights_and_the_average_of_before_and_draws_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE", 1)
    module = Line()
    drawn: list[list[float]] = []

    def losses(rng: random.Random) -> Iterator[Tensor]:
        drawn.append([])
        while True:
            drawn[-1].append(rng.random() + torch.rand(1).item())
            yield (module(torch.full((4, 2), drawn[-1][-1])) - 1).square().flatten()

    def train(steps: int) -> Line:
        matrices = [p for p in module.inner.parameters() if p.ndim == 2]
        optimizer = Optimizers(list(module.parameters()), matrices, decay=0.1)
        state_path = tmp_path / "state.pt"
        return loop.train(module, losses, optimizer, steps=steps, peak=0.1, warm_up=1, decay=0.9, state_path=state_path)

    torch.manual_seed(0)
    average = train(3).state_dict()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module = Line()
    went_on = train(3)
    assert len(drawn) == 1, "there was nothing left to do"
    for name, tensor in module.state_dict().items():
        assert tensor.equal(weights[name])
        assert went_on.state_dict()[name].equal(average[name])
    train(5)
    assert len(drawn[1]) == 2
    assert not set(drawn[1]) & set(drawn[0])


class Line(nn.Module):
    """A layer within, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.inner(x))
        return found
