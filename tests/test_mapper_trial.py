"""Mappers from elsewhere: what is asked of them and told about them, and the caption that each writes on trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.urls import reverse

from captioner import services
from captioner.errors import Refused
from captioner.models import MapperVersion, Style
from clipcap.captioner import Captioner
from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper, save_mapper
from clipcap.mapper import Mapper, MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from tests.people import client_of
from tests.test_checkpoint import original_state

FITTING = MapperConfig("transformer", 16, 32, prefix_length=3, clip_length=2, layers=1, heads=8)
WAYS = [
    DecodingOptions("greedy", max_length=4),
    DecodingOptions("beam", captions=2, max_length=4),
    DecodingOptions("nucleus", captions=2, max_length=4, seed=1),
]


def mapper_of(size: float, config: MapperConfig = FITTING) -> Mapper:
    torch.manual_seed(0)
    mapper = build_mapper(config).eval().requires_grad_(False)
    mapper.first_layer.weight.mul_(size)
    return mapper


def file_of(size: float, path: Path) -> Path:
    save_mapper(MapperCheckpoint(mapper_of(size), None, None), path)
    return path


def test_a_mapper_with_weights_beyond_all_measure_is_refused_when_it_is_loaded(
    captioner: Captioner, tmp_path: Path
) -> None:
    assert captioner.load_model(file_of(1, tmp_path / "sound.safetensors"))
    with pytest.raises(CheckpointError, match=r"huge\.safetensors.*far too large"):
        captioner.load_model(file_of(1e37, tmp_path / "huge.safetensors"))


def test_a_mapper_whose_prefix_leaves_no_room_for_a_caption_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    long = mapper_of(1, MapperConfig("transformer", 16, 32, prefix_length=96, clip_length=1, layers=1))
    save_mapper(MapperCheckpoint(long, None, None), tmp_path / "long.safetensors")
    with pytest.raises(CheckpointError, match="leave no room for a caption in the 96 positions"):
        captioner.load_model(tmp_path / "long.safetensors")


@pytest.mark.parametrize("options", WAYS, ids=[way.method for way in WAYS])
def test_a_row_without_numbers_has_no_captions_and_the_others_have_theirs(
    options: DecodingOptions, captioner: Captioner
) -> None:
    sound, huge = ClipCaptionModel(mapper_of(1)), ClipCaptionModel(mapper_of(1e37))
    embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    mixed = captioner.caption(embeddings, [sound, huge, sound], options)
    alone = captioner.caption(embeddings, [sound] * 3, options)
    assert [[c.text for c in row] for row in mixed] == [[c.text for c in alone[0]], [], [c.text for c in alone[2]]]
    assert alone[0]


def imported(style: Style, content: bytes, **choices: str) -> Any:
    boss = client_of(User.objects.create_superuser("boss"))
    form = {"style": style.pk, "file": SimpleUploadedFile("theirs.pt", content), **choices}
    return boss.post(reverse("admin:captioner_mapperversion_import"), form, follow=True)


@pytest.mark.parametrize(
    ("choices", "normalize", "said"),
    [
        ({}, True, "normalized to unit length (guessed)"),
        ({"normalize": "no"}, False, "as the encoder gives them (given)"),
    ],
    ids=["guessed", "given"],
)
def test_how_an_imported_mapper_was_trained_is_asked_recorded_and_said(
    choices: dict[str, str], normalize: bool, said: str, style: Style, tiny_models: None, tmp_path: Path
) -> None:
    torch.save({"state_dict": original_state(FITTING)}, tmp_path / "theirs.pt")
    page = imported(style, (tmp_path / "theirs.pt").read_bytes(), **choices).content.decode()
    version = style.versions.get()
    assert version.config["normalize"] is normalize
    assert page.count(f"trained on embeddings {said}") == 1, "when it is filed"
    assert f"trained_on embeddings {said}" in page, "and on its page"
    stored = load_mapper(Path(version.file.path))
    assert stored.mapper.config.normalize is normalize, "whoever loads it need not guess again"


def test_a_mapper_that_cannot_write_is_refused_at_the_import_and_before_it_serves(
    style: Style, tiny_models: None, tmp_path: Path
) -> None:
    path = file_of(1e37, tmp_path / "huge.safetensors")
    page = imported(style, path.read_bytes()).content.decode()
    assert "far too large" in page
    assert str(tmp_path) not in page
    assert not style.versions.exists()
    version = services.register_version(style=style, path=path, origin=MapperVersion.Origin.IMPORTED)
    with pytest.raises(Refused, match="far too large") as refusal:
        services.promote(version=version)
    assert "/" not in refusal.value.detail
    assert style.version_in_service is None
    with pytest.raises(CommandError, match="far too large"):
        call_command("install_styles", tmp_path)


def test_a_version_whose_stored_file_is_damaged_is_not_promoted(style: Style, tmp_path: Path) -> None:
    path = file_of(1, tmp_path / "sound.safetensors")
    version = services.register_version(style=style, path=path, origin=MapperVersion.Origin.IMPORTED)
    Path(version.file.path).write_bytes(b"x")
    with pytest.raises(Refused, match=r"the file of plain v1 cannot be used: .*SHA-256"):
        services.promote(version=version)


def test_the_command_that_checks_a_mapper_takes_the_choice_and_writes_our_format(
    tiny_models: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs.pt", tmp_path / "ours.safetensors"
    torch.save(original_state(FITTING), theirs)
    call_command("check_mapper", theirs, "--no-normalize", "--write", ours)
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["trained_on"] == "embeddings as the encoder gives them (given)"
    assert not load_mapper(ours).mapper.config.normalize
