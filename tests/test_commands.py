"""The management commands, with a real worker's engine beside them where captions are to be written."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class
from django.utils import timezone

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.management.commands import caption_folder
from captioner.models import Caption, CaptionRequest, Image, MapperVersion, Style, Viewer, Worker
from tests.engine_thread import EngineThread

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]
ROOT = Path(__file__).parent.parent
PHOTOS = sorted((ROOT / "examples/coco_cc").glob("*.jpg"))


@pytest.fixture
def working(engine: CaptionEngine, styles: dict[str, Style]) -> Iterator[None]:
    """A worker that writes the captions asked for while the test runs."""
    Worker.objects.create(name="tests", queue="captions")
    thread = EngineThread(engine)
    thread.start()
    yield
    thread.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, one of them in a folder of its own, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "päivä").mkdir(parents=True)
    for name, photo in zip(("a.jpg", "B.JPEG", "päivä/c.jpg"), PHOTOS, strict=False):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "notes.txt").write_text("not a photo, and not called one")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.embedded_models
def test_a_folder_is_captioned_into_json_lines(working: None, folder: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out.jsonl", io.StringIO()
    call_command("caption_folder", folder, "--style", "factual", "romantic", "--out", out, stderr=said)
    found = lines(out)
    assert {(line["image"], line["style"]) for line in found} == {
        (name, style) for name in ("a.jpg", "B.JPEG", "päivä/c.jpg") for style in ("factual", "romantic")
    }
    assert all(line["caption"] and line["log_probability"] < 0 for line in found)
    assert all(0 < line["confidence"] < 1 for line in found)
    assert {line["mapper"] for line in found} == {"factual v1", "romantic v1"}
    assert "3 photos, 0 of them done already; 1 other files skipped" in said.getvalue()


@pytest.mark.embedded_models
def test_what_the_models_are_less_sure_of_than_asked_has_a_line_without_words(
    working: None, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(2):  # the second time there is nothing left to do
        call_command("caption_folder", folder, "--min-confidence", "1", "--out", out, stderr=io.StringIO())
    found = lines(out)
    assert {line["image"] for line in found} == {"a.jpg", "B.JPEG", "päivä/c.jpg"}
    assert [(line["caption"], line["withheld"]["code"]) for line in found] == [("", "low_confidence")] * 3


def test_without_a_file_the_lines_go_to_standard_output(
    working: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("caption_folder", folder)
    assert {json.loads(line)["style"] for line in capsys.readouterr().out.splitlines()} == {"factual"}


def test_a_bad_photo_is_reported_with_its_cause_and_the_others_are_captioned(
    working: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff and nothing else")
    out = tmp_path / "out.jsonl"
    with pytest.raises(CommandError, match="1 of 4 photos could not be captioned"):
        call_command("caption_folder", folder, "--out", out, stderr=io.StringIO())
    (bad,) = [line for line in lines(out) if "error" in line]
    assert bad["image"] == "bad.jpg"
    assert bad["error"]["code"] == "image_damaged"
    assert f"bad.jpg: {bad['error']['detail']}" in capsys.readouterr().err
    assert len(lines(out)) == 4


def test_what_has_a_line_is_not_captioned_again(working: None, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    kept = [
        {"image": "a.jpg", "style": "factual", "caption": "kept as it is"},
        {"image": "B.JPEG", "error": {"code": "image_damaged", "detail": "it was bad and need not be tried again"}},
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"image": "päivä/c.jp')

    call_command("caption_folder", folder, "--style", "factual", "humorous", "--out", out, stderr=io.StringIO())

    found = lines(out)
    assert found[:2] == kept
    assert {(line["image"], line["style"]) for line in found[2:]} == {
        ("a.jpg", "humorous"),
        ("päivä/c.jpg", "factual"),
        ("päivä/c.jpg", "humorous"),
    }


def test_a_folder_is_done_whatever_its_photos_are_called(
    working: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["line\u2028sep.jfif", "next\x85line.jpe", "caf\udce9.JPG", "\x1b[31mred.jpg"]
    for name in names:
        (folder / name).write_bytes(PHOTOS[0].read_bytes())
    (folder / "._a.jpg").write_bytes(b"left by macOS")
    (folder / "bad\u2029.jpg").write_bytes(b"bad")
    out, said = tmp_path / "out.jsonl", io.StringIO()
    with pytest.raises(CommandError, match="1 of 8 photos could not be captioned"):
        call_command("caption_folder", folder, "--out", out, stderr=said)
    assert {line["image"] for line in lines(out)} == {"a.jpg", "B.JPEG", "päivä/c.jpg", "bad\u2029.jpg", *names}
    assert "bad\\u2029.jpg: " in capsys.readouterr().err
    said = io.StringIO()
    call_command("caption_folder", folder, "--out", out, stderr=said)
    assert "8 photos, 8 of them done already; 2 other files skipped" in said.getvalue()
    assert len(lines(out)) == 8


def test_ctrl_c_leaves_whole_lines_and_nothing_in_the_queue(
    styles: dict[str, Style], engine: CaptionEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    (folder / "bad.jpg").write_bytes(b"bad")
    waits = iter([None])

    def interrupted(captions: caption_folder.FolderCaptions) -> None:
        if next(waits, "over") == "over":
            raise KeyboardInterrupt
        engine.work()

    monkeypatch.setattr(caption_folder.FolderCaptions, "_wait", interrupted)
    monkeypatch.setattr(engine, "batch_size", 1)
    with pytest.raises(CommandError, match="the same command continues from here"):
        call_command("caption_folder", folder, "--out", out, stderr=io.StringIO())
    assert len(lines(out)) == 2  # the bad photo and the one that the engine got to
    assert not Caption.objects.unfinished().exists()


def test_a_missing_worker_is_reported_at_once(
    styles: dict[str, Style], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "rescue_stale", interrupted)
    with pytest.raises(CommandError):
        call_command("caption_folder", folder, stderr=io.StringIO())
    assert "No caption worker reported" in capsys.readouterr().err


def test_the_captions_belong_to_the_user_named_and_let_others_pass(
    working: None, folder: Path, tmp_path: Path, viewer: Viewer
) -> None:
    call_command("caption_folder", folder, "--user", "ada", "--out", tmp_path / "out.jsonl", stderr=io.StringIO())
    assert Caption.objects.filter(owner=viewer.user).count() == 3
    assert all(caption.bulk for caption in Caption.objects.all())


def test_a_full_queue_is_waited_for(working: None, folder: Path, tmp_path: Path, settings: Any) -> None:
    settings.MAX_QUEUED = 1
    call_command("caption_folder", folder, "--out", tmp_path / "out.jsonl", stderr=io.StringIO())
    assert [caption.status for caption in Caption.objects.all()] == ["succeeded"] * 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere is not a directory"),
        ([".", "--style", "baroque"], "style 'baroque' is not in service; the styles in service are factual, humorous"),
        ([".", "--min-confidence", "1.5"], "--min-confidence must be from 0 to 1, not 1.5"),
        ([".", "--user", "nobody"], "there is no user 'nobody'"),
        (["empty"], "contains no photos"),
        ([".", "--out", "notes.txt"], "contains lines that this command did not write"),
        ([".", "--out", "a.jpg/out.jsonl"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    styles: dict[str, Style], folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(CommandError, match=complaint):
        call_command("caption_folder", *arguments, stderr=io.StringIO())
    assert (folder / "notes.txt").read_text() == "not a photo, and not called one"


def test_pruning_deletes_old_requests_and_what_nothing_refers_to(
    styles: dict[str, Style], engine: CaptionEngine, media: Path
) -> None:
    _, corrected, young = [
        services.request_captions(viewer=Viewer(), images=[services.Upload(photo.read_bytes())]) for photo in PHOTOS[:3]
    ]
    engine.work()
    services.correct_caption(Viewer(), corrected.captions.get().pk, "A person's own words.")
    long_ago = timezone.now() - timedelta(days=10)
    CaptionRequest.objects.exclude(pk=young.pk).update(created_at=long_ago)
    Image.objects.update(created_at=long_ago)

    said = io.StringIO()
    call_command("prune", stdout=said)
    assert said.getvalue() == "0 requests, 0 images deleted\n"  # by default everything is kept
    said = io.StringIO()
    call_command("prune", "--older-than", "9.5", stdout=said)

    assert said.getvalue() == "1 requests, 1 images, 0 uploads, 0 run folders deleted\n"
    assert set(CaptionRequest.objects.all()) == {corrected, young}
    assert len(list((media / "images").iterdir())) == 2


@pytest.mark.parametrize("days", ["0", "-1", "soon", "nan", "1e300"])
def test_pruning_refuses_what_is_no_age(days: str) -> None:
    with pytest.raises(CommandError, match="days"):
        call_command("prune", f"--older-than={days}")


@pytest.mark.embedded_models
def test_a_shipped_version_gives_way_to_a_newer_one_and_others_stay(styles: dict[str, Style]) -> None:
    MapperVersion.objects.update(sha256="0" * 64)  # as if filed from files of an earlier release
    styles["humorous"].versions.update(origin=MapperVersion.Origin.TRAINED)
    call_command("install_styles", stdout=io.StringIO())
    numbers = {slug: style.version_in_service.number for slug, style in styles.items() if style.version_in_service}
    assert numbers == {"factual": 2, "humorous": 1, "romantic": 2}


@pytest.mark.embedded_models
def test_styles_that_are_installed_stay_as_they_are(styles: dict[str, Style]) -> None:
    said = io.StringIO()
    call_command("install_styles", stdout=said)
    assert said.getvalue() == ""
    assert {style.versions.count() for style in styles.values()} == {1}


def test_a_folder_without_mappers_is_refused(db: None, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="there is no mapper"):
        call_command("install_styles", tmp_path)


@pytest.mark.parametrize("name", [n for n, app in get_commands().items() if app in ("captioner", "training")])
def test_every_command_says_what_it_is_for(name: str) -> None:
    assert load_command_class(get_commands()[name], name).help.endswith(".")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["help", "diffsettings"])
def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word(command: str, unbuffered: str) -> None:
    unread, written = os.pipe()
    os.close(unread)
    done = subprocess.run(
        [sys.executable, "-P", ROOT / "manage.py", command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        stdout=written,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(written)
    assert (done.returncode, done.stderr) == (141, b"")
