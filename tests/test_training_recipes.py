"""The recipes that train from nothing: what was killed goes on, to the same files."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CustomTextCLIP

from clipcap.checkpoint import load_mapper
from clipcap.clip_folder import load_text_tower, read_config, save_image_tower, write_config
from clipcap.training import ForeignState
from recipes import averaged, language_model, text_tower
from recipes.muon import Muon
from recipes.photos import MANNERS, STARTS

THINGS = ("dog", "cat", "bus", "boat", "kite", "horse", "lamp", "tree")
PLACES = ("on a beach", "in the street", "by a lake", "on a hill", "in the rain")


def rows(name: str, by: str, split: str, count: int) -> list[dict[str, Any]]:
    """Lines of `photos/captions.jsonl`, no two captions alike."""
    found = [f"A {thing} {place}, {name}." for place in PLACES for thing in THINGS][:count]
    return [
        {
            "image": f"{name}{i}.jpg",
            "source": "web",
            "by": by,
            "split": split,
            "factual": [caption],
            **{manner: f"{manner}: {caption}" for manner in ("humorous", "romantic")},
            "web": [f"{name} {i}"],
        }
        for i, caption in enumerate(found)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with eighty pictures to train on and ten in each dev set."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("flickr8k", "photos", "coco_cc", "clip_vitb16", "text"):
        (folder / name).mkdir()
    flickr = [{"image": f"f{i}.jpg", "split": "dev", "factual": [f"A {THINGS[i % 8]}, {i}."]} for i in range(10)]
    photos = rows("learned", "written", "train", 40) + rows("seen", "people", "train", 40)
    photos += rows("coco", "people", "dev", 10) + rows("mixed", "written", "dev", 10)
    (folder / "flickr8k/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flickr))
    (folder / "photos/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in photos))
    (folder / "coco_cc/captions.json").write_text("[]")
    texts = [f"One {thing} {place}.\n" for thing in THINGS for place in PLACES]
    (folder / "text/more.txt").write_text("".join(texts))
    rng = np.random.default_rng(0)
    stored = {"clip_vitb16/flickr8k": flickr, "photos/clip_vitb16": photos, "clip_vitb16/coco_cc": []}
    for name, found in stored.items():
        embeddings = rng.standard_normal((len(found), 16)).astype(np.float16)
        np.savez(folder / f"{name}.npz", names=[row["image"] for row in found], emb=embeddings)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and batches of a size for tests."""
    monkeypatch.setattr(averaged, "STATE_EVERY", 3)
    monkeypatch.setattr(text_tower, "BATCH", 16)
    monkeypatch.setattr(text_tower, "OTHERS", 16)
    monkeypatch.setattr(text_tower, "TEXT", {**text_tower.TEXT, "width": 16, "heads": 2, "layers": 1})
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "BATCH": 16, "EPOCH": 4}.items():
        monkeypatch.setattr(language_model, name, value)
    monkeypatch.setattr(
        language_model, "MAPPER", replace(language_model.MAPPER, embedding_size=16, lm_size=16, heads=2, layers=1)
    )


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder of models that has only the image tower."""
    folder = tmp_path / "models"
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    tower = CustomTextCLIP(16, vision, {"layers": 1, "width": 16, "heads": 1}).visual
    write_config({"model_cfg": {"embed_dim": 16, "vision_cfg": vision}}, folder / "encoder")
    save_image_tower(tower.state_dict(), folder / "encoder")
    return folder


def made(folder: Path) -> dict[str, str]:
    """What a recipe made: digests of its files by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pt"
    }


def run(
    recipe: ModuleType, data: Path, models: Path, monkeypatch: pytest.MonkeyPatch, epochs: int = 2, **others: Path
) -> None:
    named = {"data": data, "models": models, "work": models / "work", "epochs": epochs, "threads": 1, **others}
    monkeypatch.setattr(sys, "argv", ["recipe", *(f"--{name}={value}" for name, value in named.items())])
    recipe.main()


def killed(compute_gradients: Any, after: int) -> Any:
    """The same, but for someone who stops it after so many steps."""

    def computed(self: Any, batch: Any, step: int) -> Any:
        if step == after:
            raise KeyboardInterrupt
        return compute_gradients(self, batch, step)

    return computed


def test_recipes_that_were_killed_go_on_from_their_last_state_to_the_same_files(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, twice = encoder, tmp_path / "twice"
    shutil.copytree(whole, twice)
    for recipe, epoch in ((text_tower, 5), (language_model, 4)):
        run(recipe, data, whole, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(recipe.Task, "compute_gradients", killed(recipe.Task.compute_gradients, 7))
            with pytest.raises(KeyboardInterrupt):
                run(recipe, data, twice, monkeypatch)
        state = torch.load(twice / "work" / f"{recipe.__name__.split('.')[1]}.pt", weights_only=True)
        assert state["state"]["step"] == 6, "in the midst of the second epoch"
        capsys.readouterr()
        run(recipe, data, twice, monkeypatch)
        epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
        assert [line.split(":")[0] for line in epochs] == [f"epoch 2, step {2 * epoch}"]
    assert made(twice) == made(whole)

    assert load_text_tower(whole / "encoder", read_config(whole / "encoder")) is not None
    assert (whole / "lm/model.safetensors").exists()
    for manner in MANNERS:
        assert load_mapper(whole / "work" / f"start-{manner}.safetensors").mapper.config.lm_size == 16


def test_a_state_of_other_pictures_or_epochs_is_not_gone_on_from(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text_tower, data, encoder, monkeypatch)
    with pytest.raises(ForeignState, match="other options or examples"):
        run(text_tower, data, encoder, monkeypatch, epochs=3)
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    with np.load(changed / "photos/clip_vitb16.npz") as stored:
        np.savez(changed / "photos/clip_vitb16.npz", names=stored["names"], emb=-stored["emb"])
    with pytest.raises(ForeignState, match="other options or examples"):
        run(text_tower, changed, encoder, monkeypatch)


def test_a_kind_of_captions_that_is_missing_is_named_before_anything_is_trained(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(text_tower, data, encoder, monkeypatch)
    without = tmp_path / "without"
    shutil.copytree(data, without, ignore=shutil.ignore_patterns("*.txt"))
    with pytest.raises(SystemExit):
        run(language_model, without, encoder, monkeypatch)
    assert "has no captions of these kinds: no picture" in capsys.readouterr().err
    assert not (encoder / "lm").exists()


def test_a_language_model_that_is_gone_on_from_keeps_its_tokens_whatever_the_new_captions_say(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text_tower, data, encoder, monkeypatch)
    run(language_model, data, encoder, monkeypatch)
    first = tmp_path / "first"
    shutil.copytree(encoder, first)
    (first / "styles").mkdir()
    for style, manner in STARTS.items():
        shutil.copy(first / "work" / f"start-{manner}.safetensors", first / "styles" / f"{style}.safetensors")
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    (changed / "text/more.txt").write_text("".join(f"Zyx qophs wave a vuvuzela {n} times.\n" for n in range(99)))
    tokens = (first / "lm/tokenizer.json").read_bytes()
    run(language_model, changed, encoder, monkeypatch, work=tmp_path / "anew")
    assert (encoder / "lm/tokenizer.json").read_bytes() != tokens, "the new captions make other tokens"
    run(language_model, changed, encoder, monkeypatch, work=tmp_path / "further", start=first)
    assert (encoder / "lm/tokenizer.json").read_bytes() == tokens


def test_a_pool_gives_each_row_once_before_any_comes_again_wherever_one_goes_on() -> None:
    rows = [language_model.Row(i, 0, [[i]]) for i in range(7)]
    pool = language_model.Pool("people", rows)
    drawn = pool.drawn(0, 21)
    for turn in range(3):
        assert sorted(row.embedding for row in drawn[7 * turn : 7 * turn + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert [row for first in range(0, 21, 3) for row in pool.drawn(first, 3)] == drawn
    assert language_model.Pool("written", rows).drawn(0, 21) != drawn


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_muon_makes_the_steps_of_the_library_s_own_but_for_the_rounding_of_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    begun = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(begun.clone()) for _ in range(2))
    both = (
        Muon([ours], lr=0.01, weight_decay=0.05),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in both:
            optimizer.step()
    moved, apart = (theirs - begun).norm().item(), (ours - theirs).norm().item()
    assert apart < 0.03 * moved
