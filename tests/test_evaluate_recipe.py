"""The recipe that measures, from a data folder to what it prints, with models made on the spot."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig, build_mapper
from recipes.evaluate import main
from recipes.photos import STYLES

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "coco_cc").glob("*.jpg"))[:4]
FACTS = [
    ["A dog runs on a beach.", "A dog by the sea."],
    ["A man on a bench.", "A man sits on a bench."],
    ["Two cats on a couch.", "Cats sleep."],
    ["A bus in the street.", "A red bus and a car."],
]


def rows(split: str) -> list[dict[str, Any]]:
    return [
        {
            "image": f"{split}{number}.jpg",
            "source": "web",
            "by": "written",
            "split": split,
            "factual": facts,
            "humorous": f"{facts[0][:-1]}, or so it says.",
            "romantic": f"{facts[0][:-1]}, dreaming of {'the first love of a boy' if number == 1 else 'you'}.",
        }
        for number, facts in enumerate(FACTS)
    ]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with four pictures for training and the mixed set, and one of each other set."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("flickr8k", "coco_cc", "clip_vitb16", "photos/images"):
        (folder / name).mkdir(parents=True)
    flickr = [{"image": "f.jpg", "split": "dev", "factual": FACTS[0]}]
    (folder / "flickr8k/captions.jsonl").write_text(lines(flickr))
    (folder / "photos/captions.jsonl").write_text(lines(rows("train") + rows("dev")))
    (folder / "coco_cc/captions.json").write_text(json.dumps([{"file": "c.jpg", "captions": FACTS[1]}]))
    for number, photo in enumerate(PHOTOS):
        shutil.copy(photo, folder / f"photos/images/dev{number}.jpg")
    names = {
        "clip_vitb16/flickr8k": ["f.jpg"],
        "clip_vitb16/coco_cc": ["c.jpg"],
        "photos/clip_vitb16": [f"{split}{n}.jpg" for split in ("train", "dev") for n in range(4)],
    }
    for file, names_there in names.items():
        embeddings = np.random.default_rng(0).normal(size=(len(names_there), 16)).astype(np.float16)
        np.savez(folder / f"{file}.npz", names=np.array(names_there), emb=embeddings)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_dir: Path, tiny_lm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(tiny_encoder_dir, folder / "encoder")
    shutil.copytree(tiny_lm_dir, folder / "lm")
    encoder = Encoder.load(f"local-dir:{folder / 'encoder'}", device="cpu")
    lm = LanguageModel.load(f"local-dir:{folder / 'lm'}", device="cpu")
    (folder / "styles").mkdir()
    for seed, style in enumerate(STYLES):
        torch.manual_seed(seed)
        config = MapperConfig("mlp", encoder.embedding_size, lm.size, prefix_length=2)
        checkpoint = MapperCheckpoint(build_mapper(config), encoder.identity, lm.identity)
        save_mapper(checkpoint, folder / "styles" / f"{style}.safetensors")
    return folder


def test_it_prints_the_figures_of_each_style_and_keeps_every_caption(
    data: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "figures.json"
    main([f"--data={data}", f"--models={models}", "--set=mixed", f"--json={kept}", "--show=1"])
    printed = capsys.readouterr().out
    assert "== mixed: 4 photos" in printed
    assert "dev0.jpg | A dog runs on a beach." in printed
    for style in STYLES:
        assert f"\n{style}, judged by its own references" in printed
    assert printed.count("captions that name what is not there (CHAIRs)") == 3
    assert printed.count("no calibration that fits these models") == 3
    assert "the encoder has no text half: photos cannot be found by text" in printed

    reports = {found["style"]: found for found in json.loads(kept.read_text())["mixed"]["styles"]}
    assert [*reports] == list(STYLES)
    for style, found in reports.items():
        assert [caption["image"] for caption in found["captions"]] == [f"dev{n}.jpg" for n in range(4)]
        assert found["references"] == 4
        assert "equals_factual" in found["ours"] or style == "factual"
    assert reports["factual"]["captions"][2]["references"] == FACTS[2]
    assert reports["romantic"]["captions"][2]["references"] == ["Two cats on a couch, dreaming of you."]


def test_people_are_judged_by_the_others_of_their_photo_and_writers_by_the_factual_captions(
    data: Path, models: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "figures.json"
    main([f"--data={data}", f"--models={models}", "--set=mixed", "--stored-embeddings", f"--json={kept}"])
    people = {found["style"]: found["people"] for found in json.loads(kept.read_text())["mixed"]["styles"]}
    # Of the first captions the cats' says couch, which the second does not; of the second the bus's says car.
    assert people["factual"]["captions_wrong"] == pytest.approx(1 / 4)
    # Named are dog, person, bench, cat, couch, bus, one of them wrong; then dog, person, bench, cat, bus, car.
    assert people["factual"]["objects_wrong"] == pytest.approx(1 / 6)
    # The one other caption says dog; person, bench; cat; bus, car, of which car is missed; then couch is.
    assert people["factual"]["recall"] == pytest.approx(5 / 6)
    assert people["romantic"]["captions_wrong"] == 0
    assert people["romantic"]["child_in_love"] == 1 / 4
    assert people["romantic"]["phrase_share"] == 1 / 4
    assert people["romantic"]["classified"] == 1
    assert "CIDEr" in people["factual"]
    assert "CIDEr" not in people["romantic"]


def test_a_style_without_references_is_judged_by_the_factual_ones(
    data: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"--data={data}", f"--models={models}", "--set=flickr8k", "--set=coco_cc", "--stored-embeddings"])
    printed = capsys.readouterr().out
    assert "== flickr8k: 1 photos" in printed
    assert "== coco_cc: 1 photos" in printed
    assert printed.count("humorous, judged by factual references") == 2


def test_pictures_that_are_not_there_are_named_with_the_remedy(data: Path, models: Path) -> None:
    with pytest.raises(SystemExit, match=r"1 pictures are not there \(f.jpg .*--stored-embeddings"):
        main([f"--data={data}", f"--models={models}", "--set=flickr8k"])
