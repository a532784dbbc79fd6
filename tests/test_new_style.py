"""A style from nothing into service, made on a page or by a program; and what its page says is next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from captioner import services as captioner_services
from captioner import uploads
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Image, Style, Viewer
from tests.people import client_of, member
from training import services
from training.models import Example, TrainingRun
from training.worker import TrainingEngine

COCO = Path(__file__).parent.parent / "examples" / "coco_cc"
ADD = reverse("admin:captioner_style_add")

pytestmark = pytest.mark.django_db


@pytest.fixture
def trainer(db: None) -> User:
    return member("tess", "Trainers", is_staff=True)


@pytest.fixture
def browser_of(trainer: User) -> Client:
    return client_of(trainer)


@pytest.fixture
def photos(media: Path, trainer: User) -> list[Image]:
    """Photos of the trainer's own."""
    names = [row["file"] for row in json.loads((COCO / "captions.json").read_text(encoding="utf-8"))[:12]]
    return [uploads.store((COCO / name).read_bytes(), Viewer(trainer).sender) for name in names]


@pytest.fixture
def blank(db: None) -> Callable[[int], list[Image]]:
    """Makes images whose bytes nobody reads."""

    def made(count: int, start: int = 0) -> list[Image]:
        return [
            Image.objects.create(sha256=f"{n:064x}", file=f"{n}.jpg", thumbnail="t.jpg", width=4, height=3, size=9)
            for n in range(start, start + count)
        ]

    return made


def about(images: list[Image]) -> list[tuple[Image, str]]:
    return [(image, f"arr, a picture of thing {number}") for number, image in enumerate(images)]


def refused(code: str, field: str = "") -> Any:
    return pytest.raises(Refused, check=lambda error: (error.code, error.extra.get("field", "")) == (code, field))


def test_a_style_made_of_three_sentences_is_trained_from_the_factual_one_and_put_into_service(
    styles: dict[str, Style], photos: list[Image], engine: CaptionEngine, trainer: User
) -> None:
    style = services.new_style(
        name="Pirate", starts_from=styles["factual"], sentences=about(photos[:3]), person=trainer
    )
    assert services.count_photos(style.examples.all()) == services.Photos(training=2, held_out=1)
    run = services.start_run(style=style, options={"epochs": 1})
    assert run.base is not None
    assert run.base == styles["factual"].version_in_service
    assert TrainingEngine(engine).work() == 1
    run.refresh_from_db()
    assert (run.status, run.error_detail, run.verdict) == (Status.SUCCEEDED, "", "first")
    assert run.version is not None
    captioner_services.promote(version=run.version)
    assert style in captioner_services.styles_in_service()
    styles["factual"].versions.exclude(pk=run.base.pk).delete()
    assert style.starting_version == run.version, "from now on it goes on from its own"


@pytest.mark.parametrize("count", [3, 12, 20])
def test_of_a_few_photos_a_tenth_is_held_out_and_never_all(
    count: int, style: Style, blank: Callable[..., list[Image]]
) -> None:
    for start in range(0, 400, 40):
        style.examples.all().delete()
        services.add_sentences(style, about(blank(count, start)))
        photos = services.count_photos(style.examples.all())
        assert photos.held_out >= -(-count // 10)
        assert photos.enough


def test_photos_that_others_have_trained_on_are_held_out_last(style: Style, blank: Callable[..., list[Image]]) -> None:
    images = blank(4, 1000)
    other = Style.objects.create(slug="other", name="Other")
    for image in images[:3]:
        services.add_example(style=other, image=image, text="a dog", source="imported")
    Example.objects.update(held_out=False)
    services.add_sentences(style, about(images))
    assert list(style.examples.filter(held_out=True).values_list("image", flat=True)) == [images[3].pk]
    assert not other.examples.filter(held_out=True).exists()


def test_sentences_added_later_hold_out_no_more_than_is_needed(
    style: Style, blank: Callable[..., list[Image]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.services.examples.is_held_out", lambda image: False)
    images = blank(12)
    for part in (images[:3], images[3:9], images[9:]):
        services.add_sentences(style, about(part))
    assert services.count_photos(style.examples.all()) == services.Photos(training=10, held_out=2)
    assert services.add_sentences(style, about(images[:3])) == 0


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"name": " "}, "invalid_name", "name"),
        ({"name": "x" * 81}, "invalid_name", "name"),
        ({"name": "海賊"}, "invalid_slug", "slug"),
        ({"name": "Pirate", "slug": "a b"}, "invalid_slug", "slug"),
        ({"name": "Plain"}, "style_exists", "slug"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_made(
    given: dict[str, Any], code: str, field: str, style: Style
) -> None:
    with refused(code, field):
        services.new_style(**given)
    assert Style.objects.count() == 1


def test_too_few_and_too_many_sentences_make_no_style(blank: Callable[..., list[Image]]) -> None:
    images = blank(21)
    for count in (2, 21):
        with refused("invalid_examples", "examples"):
            services.new_style(name="Pirate", sentences=about(images[:count]))
    with refused("invalid_text"):
        services.new_style(name="Pirate", sentences=[*about(images[:3]), (images[3], "...")])
    assert not Style.objects.exists()
    assert not Example.objects.exists()


def test_a_style_starts_only_from_one_that_has_a_version(style: Style) -> None:
    with refused("no_active_version", "starts_from"):
        services.new_style(name="Pirate", starts_from=style)


def test_a_long_name_makes_a_short_name_that_fits(db: None) -> None:
    assert services.new_style(name="word " * 16).slug == ("word-" * 10).rstrip("-")


# The page


def fields(images: list[Image], texts: list[str], **others: Any) -> dict[str, Any]:
    written = {f"sentence-{image.pk}": text for image, text in zip(images, texts, strict=True)}
    return {"photo": [str(image.pk) for image in images], **written, **others}


def test_the_page_offers_own_photos_and_makes_a_style_of_what_was_written(
    styles: dict[str, Style], photos: list[Image], browser_of: Client
) -> None:
    page = browser_of.get(ADD)
    assert [image for image, _ in page.context["form"].rows] == photos[::-1]
    assert page.context["form"]["starts_from"].initial == styles["factual"]
    texts = ["arr, a ship", "arr, a sea", "", "arr, a dog"]
    answer = browser_of.post(ADD, fields(photos[:4], texts, name="Pirate", starts_from=styles["romantic"].pk))
    style = Style.objects.get(slug="pirate")
    assert answer["Location"] == reverse("admin:captioner_style_change", args=[style.pk])
    assert style.starts_from == styles["romantic"]
    assert sorted(style.examples.values_list("text", flat=True)) == ["arr, a dog", "arr, a sea", "arr, a ship"]


def test_photos_are_added_to_the_page_and_what_was_typed_stays(
    styles: dict[str, Style], browser_of: Client, trainer: User, photo: bytes
) -> None:
    (kept,) = [uploads.store((COCO / "000000349860.jpg").read_bytes(), Viewer(trainer).sender)]
    given = fields([kept], ["arr, a ship"], name="Pirate", add="photos")
    files = [SimpleUploadedFile("a.jpg", photo), SimpleUploadedFile("b.jpg", b"no picture")]
    page = browser_of.post(ADD, {**given, "upload": files})
    new, old = page.context["form"].rows
    assert (new[0].sender, old[1].value()) == (Viewer(trainer).sender, "arr, a ship")
    assert page.context["form"]["name"].value() == "Pirate"
    assert "b.jpg: " in page.context["problem"]
    assert "errornote" not in page.content.decode(), "nothing was saved yet, so nothing is missing"
    assert not Style.objects.filter(slug="pirate").exists()


def test_what_is_refused_stands_beside_its_field_and_what_was_typed_stays(
    styles: dict[str, Style], photos: list[Image], browser_of: Client
) -> None:
    page = browser_of.post(ADD, fields(photos[:2], ["arr", "arr, a sea"], name="Factual"))
    form = page.context["form"]
    assert "3 to 20 example sentences" in str(form.non_field_errors())
    page = browser_of.post(ADD, {"name": "Factual"})
    assert "already" in str(page.context["form"]["slug"].errors)


def test_a_file_of_examples_is_imported_into_the_new_style(
    styles: dict[str, Style], browser_of: Client, media: Path
) -> None:
    for content, says in ((b"PK", ""), (b"", "file is empty")):
        name = f"Pirate {len(content)}"
        answer = browser_of.post(ADD, {"name": name, "file": SimpleUploadedFile("photos.zip", content)}, follow=True)
        style = Style.objects.get(name=name)
        assert style.imports.count() == len(content) // 2
        assert says in answer.content.decode().lower()


def test_more_sentences_are_written_on_a_page_of_their_own(
    style: Style, photos: list[Image], browser_of: Client
) -> None:
    address = reverse("admin:captioner_style_sentences", args=[style.pk])
    browser_of.post(address, fields(photos[:1], ["arr, a ship"]))
    assert style.examples.get().text == "arr, a ship"
    page = browser_of.post(address, fields(photos[:1], ["..."]))
    assert "no words" in str(page.context["form"].non_field_errors())


# The next step


def step(style: Style) -> tuple[str, str]:
    found = services.next_step(Style.objects.get(pk=style.pk))
    return found.kind, found.label


def test_the_next_step_leads_from_nothing_into_service_and_on(
    styles: dict[str, Style], blank: Callable[..., list[Image]], trainer: User
) -> None:
    factual = styles["factual"]
    style = services.new_style(name="Pirate", starts_from=factual)
    assert step(style) == ("examples", "Add examples")
    batch = services.start_import(style=style, file=SimpleUploadedFile("a.zip", b"PK"), name="a.zip")
    assert step(style) == ("import", "Watch the import")
    services.cancel_import(batch)
    services.add_sentences(style, about(blank(12)))
    assert step(style) == ("train", "Train")
    run = services.start_run(style=style)
    assert step(style) == ("run", "Watch the training")
    services.cancel_run(run)
    assert step(style) == ("run", "See why and go on")
    source = factual.version_in_service
    assert source is not None
    with source.file.open("rb"):
        version = captioner_services.register_version(
            style=style, path=Path(source.file.path), origin=source.Origin.TRAINED
        )
    assert step(style) == ("version", "Look at v1")
    TrainingRun.objects.filter(pk=run.pk).update(status="succeeded", version=version)
    assert step(style) == ("run", "Look at v1")
    captioner_services.promote(version=version)
    assert step(style) == ("label", "Label captions")
    services.add_sentences(style, about(blank(1, 50)))
    assert step(style) == ("train", "Train")
    captioner_services.withdraw_style(style)
    captioner_services.archive_style(style)
    assert step(style) == ("restore", "Bring it back")


def test_a_worse_version_is_no_step_and_a_rejected_one_gives_way_to_new_examples(
    styles: dict[str, Style], blank: Callable[..., list[Image]]
) -> None:
    style = styles["factual"]
    source = style.version_in_service
    assert source is not None
    for verdict, kind in (("worse", "train"), ("unclear", "version")):
        version = style.versions.create(number=2, sha256="0" * 64, origin="trained", metrics={"verdict": verdict})
        if kind == "train":
            services.add_sentences(style, about(blank(12)))
        else:
            style.examples.all().delete()
        assert step(style)[0] == kind
        version.delete()


def test_the_next_step_is_a_button_for_those_who_may_and_a_sentence_for_others(
    styles: dict[str, Style], blank: Callable[..., list[Image]], browser_of: Client
) -> None:
    style = services.new_style(name="Pirate", starts_from=styles["factual"], sentences=about(blank(5)))
    address = reverse("admin:captioner_style_change", args=[style.pk])
    train = reverse("admin:captioner_style_train", args=[style.pk])
    assert f'action="{train}"' in browser_of.get(address).content.decode()
    viewer = User.objects.create_user("vera", is_staff=True)
    viewer.groups.add(Group.objects.get(name="Viewers"))
    other = client_of(viewer)
    page = other.get(address).content.decode()
    assert "5 examples are ready to learn from" in page
    assert train not in page
    answer = browser_of.post(train)
    assert answer["Location"] == reverse("admin:training_trainingrun_change", args=[style.runs.get().pk])


def test_a_style_that_can_only_start_from_scratch_is_trained_with_options(
    style: Style, blank: Callable[..., list[Image]], browser_of: Client
) -> None:
    services.add_sentences(style, about(blank(5)))
    page = browser_of.get(reverse("admin:captioner_style_change", args=[style.pk]))
    assert page.context["step"].address == reverse("admin:captioner_style_retrain", args=[style.pk])


# The API


def post(client: Client, body: Any) -> Any:
    return client.post("/api/styles/", body, content_type="application/json")


def test_a_program_makes_a_style_with_examples(
    styles: dict[str, Style], photos: list[Image], browser_of: Client, trainer: User
) -> None:
    captioner_services.request_captions(viewer=Viewer(trainer), images=photos[:3])
    examples = [{"image": str(image.pk), "text": text} for image, text in about(photos[:3])]
    answer = post(browser_of, {"name": "Pirate", "description": "Arr.", "examples": examples})
    assert answer.status_code == 201, answer.json()
    body = answer.json()
    assert (body["slug"], body["description"], body["version"]) == ("pirate", "Arr.", None)
    style = Style.objects.get(slug="pirate")
    assert (style.examples.count(), style.starts_from) == (3, styles["factual"])
    for start, expected in ((None, None), ("romantic", styles["romantic"])):
        assert post(browser_of, {"name": f"From {start}", "starts_from": start}).status_code == 201
        assert Style.objects.get(name=f"From {start}").starts_from == expected


def test_a_program_is_told_what_it_may_not_and_what_is_wrong(
    styles: dict[str, Style], browser_of: Client, viewer: Viewer, blank: Callable[..., list[Image]]
) -> None:
    stranger = client_of(viewer.user)
    answer = post(stranger, {"name": "Pirate"})
    assert (answer.status_code, "'Can add style'" in answer.json()["detail"]) == (403, True)
    for body, status, code in (
        ({"name": "Factual"}, 409, "style_exists"),
        ({"name": "Pirate", "starts_from": "none"}, 404, "not_found"),
        ({"name": "Pirate", "examples": [{"image": str(blank(1)[0].pk), "text": "a dog"}]}, 404, "not_found"),
    ):
        answer = post(browser_of, body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
