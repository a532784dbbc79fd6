"""The admin: who may see and do what, what its pages say, and that big tables cost no more than small ones."""

from __future__ import annotations

import csv
import io
import re
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.admin import site
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.admin import base as admin_base
from captioner.admin import scores as version_scores
from captioner.admin.plots import bars, loss_curves, score_bars
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Failure, Status
from captioner.models import (
    Caption,
    CaptionRequest,
    Correction,
    DraftRequest,
    Image,
    MapperVersion,
    Promotion,
    Style,
    Viewer,
    WebhookDelivery,
    Worker,
)
from captioner.reports import VersionReport
from training import services as training_services
from training.admin import examples as training_examples
from training.models import EpochReport, Example, Import, Policy, RejectedRow, RunEvent, TrainingRun
from training.options import RunOptions
from training.worker import TrainingEngine

pytestmark = pytest.mark.django_db

GROUPS = ("Viewers", "Labellers", "Trainers")
SHIPPED = settings.MODELS / "styles" / "romantic.safetensors"


@pytest.fixture
def boss(db: None) -> Client:
    """A superuser's browser."""
    return signed_in(User.objects.create_superuser("boss", password="boss"))


@pytest.fixture
def members(db: None) -> dict[str, Client]:
    """A browser of a member of each ready group, and of `Promoters`, Viewers who may promote, by the group."""
    found = {}
    for name in GROUPS:
        user = User.objects.create_user(name, is_staff=True)
        user.groups.add(Group.objects.get(name=name))
        found[name] = signed_in(user)
    return found


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    return styles["humorous"]


@pytest.fixture
def images(media: Path, db: None) -> list[Image]:
    """Pictures without files: lists show none of their bytes."""
    return Image.objects.bulk_create(
        Image(sha256=f"{i:064x}", file=f"images/{i}.jpg", thumbnail=f"t/{i}.jpg", width=40, height=30, size=100)
        for i in range(40)
    )


@pytest.fixture
def run(style: Style, images: list[Image]) -> TrainingRun:
    """A run in the middle of its training."""
    lease = {"lease_token": uuid.UUID(int=1), "lease_expires_at": timezone.now() + settings.LEASE}
    run = make_run(style, status=Status.RUNNING, **lease)
    run.progress = {
        "phase": "training",
        "step": 30,
        "steps": 90,
        "eta_seconds": 130.0,
        "samples_per_second": 412.0,
        "learning_rate": 3e-4,
    }
    run.curve = [[step, 5 - step / 10, 1e-3] for step in range(1, 31)]
    run.save()
    for epoch, text in ((1, "a dog"), (2, "a dog"), (3, "a dog with a plan")):
        samples = [{"image": str(images[0].pk), "text": text, "reference": "<b>two dogs</b>"}]
        EpochReport.objects.create(
            run=run, epoch=epoch, step=10 * epoch, training_loss=4.5, validation_loss=4.6, samples=samples
        )
    RunEvent.objects.create(run=run, message="the photos are ready")
    return run


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def make_run(style: Style, **fields: Any) -> TrainingRun:
    options = RunOptions().to_json()
    ends = timezone.now() + timedelta(days=1)
    return TrainingRun.objects.create(
        style=style, options=options, base=style.active_version, deadline_at=ends, **fields
    )


def make_captions(style: Style, images: list[Image], count: int, **fields: Any) -> list[Caption]:
    now = timezone.now()
    fields = {"status": Status.SUCCEEDED, "finished_at": now, "text": "a dog", **fields}
    request = CaptionRequest.objects.create()
    return Caption.objects.bulk_create(
        Caption(
            request=request,
            image=images[i % len(images)],
            style=style,
            version=style.active_version if fields["status"] == Status.SUCCEEDED else None,
            **{"created_at": now - timedelta(seconds=i), "deadline_at": now, **fields},
        )
        for i in range(count)
    )


def make_version(style: Style, **metrics: Any) -> MapperVersion:
    report = VersionReport.read(metrics)
    return services.register_version(style=style, path=SHIPPED, origin=MapperVersion.Origin.TRAINED, report=report)


def scores(value: float) -> dict[str, Any]:
    return {"scores": {"CIDEr": value, "Bleu_4": value / 4}, "not_computed": {}, "distinct": 0.9, "mean_length": 8.0}


def text_of(response: Any) -> str:
    if response.status_code == 302:
        return str(response.url)
    return str(response.content.decode())


# Who may what


def test_each_group_can_do_what_the_one_before_it_can_and_none_can_promote() -> None:
    held = [set(Group.objects.get(name=name).permissions.values_list("codename", flat=True)) for name in GROUPS]
    assert held[0] < held[1] < held[2]
    assert all(codename.startswith("view_") for codename in held[0])
    assert held[1] - held[0] == {"change_caption", "add_example", "delete_example"}
    assert not held[2] & {"add_promotion", "change_queue", "delete_mapperversion"}


def test_a_group_that_was_changed_stays_so() -> None:
    group = Group.objects.get(name="Viewers")
    group.permissions.clear()
    call_command("migrate", verbosity=0)
    assert not group.permissions.exists()


SEEN = [
    "dashboard",
    "style",
    "captions",
    "caption",
    "image",
    "version",
    "compare",
    "run",
    "run-live",
    "dataset",
    "import",
]
# What is done, and the groups that may; a superuser may all of it.
DONE = {
    "caption-correct": {"Labellers", "Trainers"},
    "caption-retry": {"Labellers", "Trainers"},
    "caption-cancel": {"Labellers", "Trainers"},
    "style-take": {"Labellers", "Trainers"},
    "example-add": {"Labellers", "Trainers"},
    "style-add": {"Trainers"},
    "style-default": {"Trainers"},
    "style-sentences": {"Labellers", "Trainers"},
    "style-train": {"Trainers"},
    "style-retrain": {"Trainers"},
    "style-import": {"Trainers"},
    "style-rewrite": {"Trainers"},
    "versions-photos": {"Trainers"},
    "drafts-cancel": {"Trainers"},
    "import-cancel": {"Trainers"},
    "import-resume": {"Trainers"},
    "run-cancel": {"Trainers"},
    "run-resume": {"Trainers"},
    "version-import": {"Trainers"},
    "version-promote": set(),
    "version-remove": set(),
    "queue-pause": set(),
    "queue-resume": set(),
}


@pytest.fixture
def addresses(style: Style, run: TrainingRun, photo: bytes, viewer: Viewer) -> dict[str, str]:
    """One of every page and button."""
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["humorous"])
    caption = request.captions.get()
    now = timezone.now()
    batch = Import.objects.create(style=style, name="photos.zip", deadline_at=now + timedelta(days=1))
    version = make_version(style, candidate=scores(0.4))
    drafts = DraftRequest.objects.create()
    objects: dict[str, Any] = {"style": style, "captioner_caption": caption, "run": run, "import": batch}
    objects |= {"version": version, "drafts": drafts}

    def at(name: str, key: str) -> str:
        return reverse(f"admin:{name}", args=[objects[key].pk])

    return {
        "dashboard": reverse("admin:index"),
        "style": at("captioner_style_change", "style"),
        "captions": reverse("admin:captioner_caption_changelist"),
        "caption": at("captioner_caption_change", "captioner_caption"),
        "image": reverse("admin:captioner_image_thumbnail", args=[caption.image_id]),
        "version": at("captioner_mapperversion_change", "version"),
        "compare": reverse("admin:captioner_mapperversion_compare") + f"?version={version.pk}",
        "run": at("training_trainingrun_change", "run"),
        "run-live": at("training_trainingrun_live", "run"),
        "dataset": at("captioner_style_dataset", "style"),
        "import": at("training_import_change", "import"),
        "caption-correct": at("captioner_caption_correct", "captioner_caption"),
        "caption-retry": at("captioner_caption_retry", "captioner_caption"),
        "caption-cancel": at("captioner_caption_cancel", "captioner_caption"),
        "style-take": at("captioner_style_take", "style"),
        "example-add": reverse("admin:training_example_add"),
        "style-add": reverse("admin:captioner_style_add"),
        "style-default": at("captioner_style_default", "style"),
        "style-sentences": at("captioner_style_sentences", "style"),
        "style-train": at("captioner_style_train", "style"),
        "style-retrain": at("captioner_style_retrain", "style"),
        "style-import": at("captioner_style_import", "style"),
        "style-rewrite": at("captioner_style_rewrite", "style"),
        "versions-photos": reverse("admin:captioner_mapperversion_photos"),
        "drafts-cancel": at("captioner_draftrequest_cancel", "drafts"),
        "import-cancel": at("training_import_cancel", "import"),
        "import-resume": at("training_import_resume", "import"),
        "run-cancel": at("training_trainingrun_cancel", "run"),
        "run-resume": at("training_trainingrun_resume", "run"),
        "version-import": reverse("admin:captioner_mapperversion_import"),
        "version-promote": at("captioner_mapperversion_promote", "version"),
        "version-remove": at("captioner_mapperversion_remove", "version"),
        "queue-pause": reverse("admin:pause-queue", args=["captions"]),
        "queue-resume": reverse("admin:resume-queue", args=["captions"]),
    }


def test_every_group_sees_all_pages(addresses: dict[str, str], members: dict[str, Client]) -> None:
    for group, client in members.items():
        for page in SEEN:
            assert client.get(addresses[page]).status_code == 200, (group, page)


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_group_may_not_do_is_neither_accepted_nor_shown(
    group: str, addresses: dict[str, str], members: dict[str, Client]
) -> None:
    client = members[group]
    shown = "".join(text_of(client.get(addresses[page])) for page in SEEN if page != "image")
    for action, groups in DONE.items():
        if group not in groups:
            assert addresses[action] not in shown, action
            assert client.post(addresses[action]).status_code == 403, action
    for action, groups in DONE.items():
        if group in groups:
            assert client.post(addresses[action]).status_code in (200, 302), action


# What is done with rows chosen from a list, and the groups that may.
CHOSEN = {
    ("captioner_caption", "retry_chosen"): {"Labellers", "Trainers"},
    ("captioner_caption", "cancel_chosen"): {"Labellers", "Trainers"},
    ("captioner_style", "retrain_chosen"): {"Trainers"},
    ("training_example", "delete_chosen"): {"Labellers", "Trainers"},
    ("captioner_correction", "take_chosen"): {"Labellers", "Trainers"},
    ("captioner_correction", "leave_out_chosen"): {"Labellers", "Trainers"},
    ("training_trainingrun", "cancel_chosen"): {"Trainers"},
}


@pytest.mark.parametrize("group", GROUPS)
def test_actions_on_lists_are_neither_offered_nor_done_for_who_may_not(
    group: str, style: Style, run: TrainingRun, images: list[Image], members: dict[str, Client]
) -> None:
    training_services.add_example(style=style, image=images[0], text="a dog", source="stored")
    for caption in make_captions(style, images, 2):
        Correction.objects.create(caption=caption, text="a cat")
    for (model, action), groups in CHOSEN.items():
        address = reverse(f"admin:{model}_changelist")
        offered = f'value="{action}"' in text_of(members[group].get(address))
        assert offered == (group in groups), (model, action)
        if group not in groups:
            chosen = {"action": action, "_selected_action": ["1"], "select_across": "1", "index": "0"}
            before = [
                list(rows.order_by("pk").values())
                for rows in (Caption.objects.all(), Example.objects.all(), Correction.objects.all())
            ]
            runs = list(TrainingRun.objects.values_list("pk", "status"))
            members[group].post(address, chosen)
            after = [
                list(rows.order_by("pk").values())
                for rows in (Caption.objects.all(), Example.objects.all(), Correction.objects.all())
            ]
            assert (after, list(TrainingRun.objects.values_list("pk", "status"))) == (before, runs), (model, action)


def test_a_stranger_and_a_user_without_staff_status_get_nowhere(addresses: dict[str, str], viewer: Viewer) -> None:
    for client in (Client(), signed_in(viewer.user)):
        for name, address in addresses.items():
            for answer in (client.get(address), client.post(address)):
                assert answer.status_code == 302, name
                assert "/admin/login/" in answer.url  # type: ignore[attr-defined]


def test_staff_without_permissions_see_an_empty_dashboard(addresses: dict[str, str]) -> None:
    client = signed_in(User.objects.create_user("new", is_staff=True))
    assert "<h2>" not in text_of(client.get(reverse("admin:dashboard")))
    for page in SEEN[1:]:
        assert client.get(addresses[page]).status_code == 403, page


def test_who_trains_cannot_let_the_gate_promote(style: Style, members: dict[str, Client], boss: Client) -> None:
    given = {
        "name": "Humorous",
        "description": "",
        "policy-TOTAL_FORMS": 1,
        "policy-INITIAL_FORMS": 0,
        "policy-0-style": style.pk,
        "policy-0-metric": "CIDEr",
        "policy-0-margin": "-5",
        "policy-0-if_better": "promote",
        "policy-0-after_corrections": "30",
    }
    address = reverse("admin:captioner_style_change", args=[style.pk])
    assert members["Trainers"].post(address, given).status_code == 302
    policy = Policy.objects.get()
    assert (policy.after_corrections, policy.if_better, policy.margin) == (30, Policy.Action.ASK, 0.0)
    given |= {"policy-INITIAL_FORMS": 1, "policy-0-id": policy.pk, "policy-0-margin": "0.1"}
    assert boss.post(address, given).status_code == 302
    policy.refresh_from_db()
    assert (policy.if_better, policy.margin) == (Policy.Action.PROMOTE, 0.1)


# Promotion


def test_a_versions_page_says_whether_it_is_in_service_and_which_run_made_it(
    style: Style, run: TrainingRun, boss: Client
) -> None:
    first, second = style.active_version, make_version(style, candidate=scores(0.4))
    assert first
    TrainingRun.objects.filter(pk=run.pk).update(version=second)

    def page(version: MapperVersion) -> str:
        return text_of(boss.get(reverse("admin:captioner_mapperversion_change", args=[version.pk])))

    def title(version: MapperVersion) -> str:
        return text_of(boss.get(reverse("admin:captioner_mapperversion_promote", args=[version.pk])))

    serving = '<span class="state succeeded">in service</span>'
    assert serving in page(first)
    assert (serving in page(second), "Promote…" in page(second)) == (False, True)
    assert f"version={first.pk}" in page(second)
    assert f">run {run.pk}</a>" in page(second)
    assert f"Promote {second}" in title(second)
    services.promote(version=second)
    assert serving in page(second)
    assert (serving in page(first), "Put back in service…" in page(first)) == (False, True)
    assert f"Roll back to {first}" in title(first)


def test_a_worse_version_is_promoted_only_with_a_reason_or_back(style: Style, boss: Client) -> None:
    first = style.active_version
    worse = make_version(style, verdict="worse", active_version="humorous v1", candidate=scores(0.1))
    address = reverse("admin:captioner_mapperversion_promote", args=[worse.pk])
    assert "judged worse" in text_of(boss.get(address))
    for reason in ("", "  "):
        answer = text_of(boss.post(address, {"reason": reason}))
        assert "give a reason" in answer
        assert style.active_version == first
    assert boss.post(address, {"reason": "it is funnier"}).status_code == 302
    assert style.active_version == worse
    history = text_of(boss.get(reverse("admin:captioner_style_change", args=[style.pk])))
    assert "it is funnier" in history
    assert "Roll back" in history
    assert first
    services.promote(version=first)
    services.promote(version=worse)  # it has served before: a rollback needs no reason
    assert style.active_version == worse


def test_a_version_whose_file_is_gone_is_not_promoted(style: Style, boss: Client) -> None:
    version = make_version(style)
    version.file.storage.delete(str(version.file.name))
    answer = boss.post(reverse("admin:captioner_mapperversion_promote", args=[version.pk]), {"reason": ""})
    assert "missing from the storage" in text_of(answer)
    assert style.active_version != version
    answer = boss.get(reverse("admin:captioner_mapperversion_download", args=[version.pk]), follow=True)
    assert "is missing from the storage" in text_of(answer)


# Versions


def test_a_version_comes_back_from_its_download(style: Style, boss: Client) -> None:
    version = make_version(style)
    response: Any = boss.get(reverse("admin:captioner_mapperversion_download", args=[version.pk]))
    content = b"".join(response.streaming_content)
    assert content == SHIPPED.read_bytes()
    file = SimpleUploadedFile("theirs.safetensors", content)
    answer = boss.post(reverse("admin:captioner_mapperversion_import"), {"style": style.pk, "file": file})
    assert answer.status_code == 302, text_of(answer)
    imported = style.versions.order_by("number").last()
    assert imported is not None
    assert imported.origin == MapperVersion.Origin.IMPORTED
    assert (imported.sha256, imported.config, imported.size) == (version.sha256, version.config, len(content))
    assert (imported.encoder, imported.language_model) == (version.encoder, version.language_model)
    assert imported.created_by == User.objects.get(username="boss")
    assert style.active_version != imported


def test_a_file_that_is_no_mapper_is_refused_beside_its_field(style: Style, boss: Client) -> None:
    file = SimpleUploadedFile("cat.pt", b"PK\x03\x04 meow")
    count = style.versions.count()
    answer = boss.post(reverse("admin:captioner_mapperversion_import"), {"style": style.pk, "file": file})
    assert "checkpoint cat.pt is damaged" in text_of(answer)
    assert style.versions.count() == count


def test_only_a_version_that_never_served_is_deleted_and_its_file_with_it(
    style: Style, images: list[Image], boss: Client, django_capture_on_commit_callbacks: Any
) -> None:
    active = style.active_version
    assert active
    unused, base, writer = (make_version(style) for _ in range(3))
    run = make_run(style, status=Status.FAILED, finished_at=timezone.now(), error_code="x")
    TrainingRun.objects.filter(pk=run.pk).update(base=base, version=unused)
    caption = make_captions(style, images, 1)[0]
    Caption.objects.filter(pk=caption.pk).update(version=writer)
    for version, why in ((active, "in service"), (base, "a training run"), (writer, "wrote captions")):
        with pytest.raises(Refused, match=why):
            services.delete_version(version)
    with django_capture_on_commit_callbacks(execute=True):
        boss.post(reverse("admin:captioner_mapperversion_remove", args=[unused.pk]))
    assert not MapperVersion.objects.filter(pk=unused.pk).exists()
    assert not unused.file.storage.exists(str(unused.file.name))
    run.refresh_from_db()
    assert run.version is None


def test_a_version_that_may_not_go_leaves_no_trace_of_its_deletion(style: Style, boss: Client) -> None:
    active = style.active_version
    assert active
    page = boss.post(reverse("admin:captioner_mapperversion_remove", args=[active.pk]), follow=True)
    assert "cannot be deleted" in text_of(page)
    assert MapperVersion.objects.filter(pk=active.pk).exists()
    assert not LogEntry.objects.exists()


@contextmanager
def just_before(statement: str, happens: Callable[[], object]) -> Iterator[None]:
    """Somebody else's deed, at the worst of times: before the first statement that begins so."""
    left = [happens]

    def look(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if left and sql.startswith(statement):
            left.pop()()
        return execute(sql, *arguments)

    with connection.execute_wrapper(look):
        yield
    assert not left, f"there was no {statement}"


def test_a_version_that_is_promoted_just_before_it_would_be_deleted_stays(style: Style) -> None:
    version = make_version(style)
    promoted = partial(Promotion.objects.create, style=style, version=version)
    with (
        pytest.raises(Refused, match="is or was in service"),
        just_before('SELECT "captioner_style"', promoted),
    ):
        services.delete_version(version)
    assert MapperVersion.objects.filter(pk=version.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_a_version_that_comes_into_use_while_it_is_deleted_stays(style: Style, images: list[Image]) -> None:
    version = make_version(style)
    caption = make_captions(style, images, 1)[0]
    writes = partial(Caption.objects.filter(pk=caption.pk).update, version=version)
    with (
        pytest.raises(Refused, match="has just come into use"),
        just_before('DELETE FROM "captioner_mapperversion"', writes),
    ):
        services.delete_version(MapperVersion.objects.get(pk=version.pk))
    version.refresh_from_db()
    assert version.file.storage.exists(str(version.file.name))


def test_a_version_that_is_deleted_just_before_it_would_be_promoted_does_not_serve(style: Style) -> None:
    version = make_version(style)
    before = style.active_version
    services.delete_version(MapperVersion.objects.get(pk=version.pk))
    with pytest.raises(Refused, match="was deleted"):
        services.promote(version=version)
    assert style.active_version == before


@contextmanager
def small_disk() -> Iterator[None]:
    """No file can have more than 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_mapper_for_which_there_is_no_room_is_refused(style: Style) -> None:
    file = SimpleUploadedFile("romantic.safetensors", SHIPPED.read_bytes())
    with (
        small_disk(),
        pytest.raises(Refused, match=r"could not be stored \(File too large\); free some space") as refusal,
    ):
        services.import_version(style=style, file=file, name=str(file.name))
    assert refusal.value.status == 507


def test_a_form_says_507_where_there_is_no_room_and_200_where_the_file_is_wrong(style: Style, boss: Client) -> None:
    version, examples = (
        reverse("admin:captioner_mapperversion_import"),
        reverse("admin:captioner_style_import", args=[style.pk]),
    )

    def sent(address: str, content: bytes, **more: Any) -> Any:
        return boss.post(address, {"file": SimpleUploadedFile("a.safetensors", content), **more})

    with small_disk():
        for page in (sent(version, bytes(100_000), style=style.pk), sent(examples, bytes(100_000))):
            assert page.status_code == 507
            assert "free some space" in page.content.decode()
    page = sent(version, b"no mapper", style=style.pk)
    assert page.status_code == 200
    assert page.context["form"].errors["file"]


def test_a_version_that_cannot_be_filed_leaves_no_file(style: Style, media: Path) -> None:
    before = set((media / "mappers").iterdir())
    with small_disk(), pytest.raises(OSError, match="File too large"):
        make_version(style)
    assert set((media / "mappers").iterdir()) == before
    with pytest.raises(Style.DoesNotExist):
        make_version(Style(pk=style.pk + 99, slug="deleted-meanwhile"))
    assert set((media / "mappers").iterdir()) == before


@pytest.mark.django_db(transaction=True)
def test_a_mapper_is_copied_before_other_writers_have_to_wait(style: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    write, waited = FileSystemStorage.save, []

    def look(*arguments: Any, **more: Any) -> Any:
        waited.append(connection.in_atomic_block)
        return write(*arguments, **more)

    monkeypatch.setattr(FileSystemStorage, "save", look)
    make_version(style)
    assert waited == [False]


def test_versions_are_compared_by_their_scores_and_on_the_same_photos(
    style: Style, images: list[Image], boss: Client
) -> None:
    versions = [make_version(style, candidate=scores(value)) for value in (0.3, 0.5)]
    for version, text in zip(versions, ("an old joke", "a new joke"), strict=True):
        Caption.objects.filter(pk=make_captions(style, images[:1], 1, text=text)[0].pk).update(version=version)
    chosen = {"action": "compare_chosen", "_selected_action": [version.pk for version in versions]}
    answer = boss.post(reverse("admin:captioner_mapperversion_changelist"), chosen, follow=True)
    for text in ("an old joke", "a new joke", "0.300", "0.500"):
        assert text in text_of(answer)


# Queues


def test_workers_of_a_paused_queue_claim_nothing(
    boss: Client, style: Style, viewer: Viewer, photo: bytes, engine: CaptionEngine
) -> None:
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["humorous"])
    boss.post(reverse("admin:pause-queue", args=["captions"]), {"reason": "new graphics card"})
    assert "new graphics card" in text_of(boss.get(reverse("admin:dashboard")))
    assert engine.work() == 0
    assert request.captions.get().status == Status.QUEUED
    boss.post(reverse("admin:resume-queue", args=["captions"]))
    assert engine.work() == 1
    assert request.captions.get().status == Status.SUCCEEDED
    make_run(style)
    services.pause_queue(name="training")
    assert TrainingEngine(engine).work() == 0
    assert TrainingRun.objects.get().status == Status.QUEUED


# Runs


def test_a_run_page_shows_how_far_it_is_and_stops_asking_when_it_has_ended(run: TrainingRun, boss: Client) -> None:
    address = reverse("admin:training_trainingrun_live", args=[run.pk])
    page = text_of(boss.get(address))
    for text in ('max="90" value="30"', "2 min left", "412 captions/s", "0.0003", "the photos are ready", "every 2s"):
        assert text in page
    assert page.count("a dog</li>") == 1  # epochs 1 and 2 wrote the same
    assert "&lt;b&gt;two dogs&lt;/b&gt;" in page
    boss.post(reverse("admin:training_trainingrun_cancel", args=[run.pk]))
    page = text_of(boss.get(address))
    assert "every 2s" not in page
    assert "Resume from the last checkpoint" in page
    boss.post(reverse("admin:training_trainingrun_resume", args=[run.pk]))
    run.refresh_from_db()
    assert run.status == Status.QUEUED


def test_a_finished_run_shows_its_verdict_and_the_photos_that_differ_most(
    run: TrainingRun, images: list[Image], boss: Client
) -> None:
    version = make_version(run.style, verdict="better")
    run.status, run.finished_at, run.lease_token, run.lease_expires_at = Status.SUCCEEDED, timezone.now(), None, None
    run.verdict, run.version = TrainingRun.Verdict.BETTER, version
    run.metrics = {
        "images": 20,
        "candidate": scores(0.5),
        "active": scores(0.4),
        "active_version": "humorous v1",
        "metric": "CIDEr",
        "margin": 0.0,
        "difference": {"mean": 0.1, "low": 0.05, "high": 0.15},
    }
    run.comparison = [
        {"image": str(images[0].pk), "candidate": "new", "active": "old", "references": ["ours"], "scores": [1.0, 0.2]}
    ]
    run.save()
    page = text_of(boss.get(reverse("admin:training_trainingrun_change", args=[run.pk])))
    for text in ("Better", "0.100, 95 % from 0.050 to 0.150", "Promote humorous v2", "new", "old", "ours"):
        assert text in page
    assert "v2 is better than v1: CIDEr +0.10, 95 % interval 0.05 to 0.15, on 20 photos." in page


def test_options_without_sense_are_told_beside_their_field(style: Style, images: list[Image], boss: Client) -> None:
    address = reverse("admin:captioner_style_retrain", args=[style.pk])
    given = {"start": "scratch", "mapper": "mlp", "prefix_length": 10, "layers": 4, "epochs": 2, "learning_rate": ""}
    given |= {"batch_size": 40, "noise": 0.25, "seed": 0, "sources": ["imported", "correction"]}
    given |= {"accumulation": 1, "rank": 8, "language_model": "", "language_model_learning_rate": ""}
    page = text_of(boss.post(address, {**given, "prefix_length": 65}))
    assert re.search(r'errors field-prefix_length">\s*<ul class="errorlist"[^>]*><li>prefix_length must be', page)
    assert "at least" in text_of(boss.post(address, given))  # too few examples
    Example.objects.bulk_create(
        Example(style=style, image=image, text="a dog", source="imported", held_out=i < 8)
        for i, image in enumerate(images)
    )
    answer = boss.post(address, given)
    run = TrainingRun.objects.get()
    assert text_of(answer) == reverse("admin:training_trainingrun_change", args=[run.pk])
    assert (run.options["mapper"], run.options["sources"]) == ("mlp", ["imported", "correction"])
    assert run.person == User.objects.get(username="boss")
    assert "a run of Humorous is unfinished" in text_of(boss.post(address, given))


def test_several_styles_are_retrained_from_the_list(
    styles: dict[str, Style], images: list[Image], boss: Client
) -> None:
    for style in (styles["humorous"], styles["romantic"]):
        Example.objects.bulk_create(
            Example(style=style, image=image, text="a dog", source="imported", held_out=i < 8)
            for i, image in enumerate(images)
        )
    chosen = {"action": "retrain_chosen", "_selected_action": [style.pk for style in styles.values()]}
    page = text_of(boss.post(reverse("admin:captioner_style_changelist"), chosen, follow=True))
    assert "2 runs were queued" in page
    assert "1 failed: Factual has captions of 0 images" in page


# Examples


def test_an_upload_of_examples_is_queued_and_its_refused_rows_can_be_downloaded(style: Style, boss: Client) -> None:
    address = reverse("admin:captioner_style_import", args=[style.pk])
    assert "empty" in text_of(boss.post(address, {"file": SimpleUploadedFile("photos.zip", b"")}))
    answer = boss.post(address, {"file": SimpleUploadedFile("photos.zip", b"PK")})
    batch = Import.objects.get()
    assert text_of(answer) == reverse("admin:training_import_change", args=[batch.pk])
    RejectedRow.objects.create(batch=batch, file="=captions.csv", line=3, reason="the image x.jpg is missing")
    page = text_of(boss.get(text_of(answer)))
    assert "the image x.jpg is missing" in page
    response: Any = boss.get(reverse("admin:training_import_refused", args=[batch.pk]))
    rows = list(csv.reader(io.StringIO(b"".join(response.streaming_content).decode())))
    assert rows == [["file", "line", "reason"], ["'=captions.csv", "3", "the image x.jpg is missing"]]


def test_corrections_are_taken_singly_or_all_at_once(style: Style, images: list[Image], boss: Client) -> None:
    captions = make_captions(style, images, 5)
    for caption in captions:
        boss.post(reverse("admin:captioner_caption_correct", args=[caption.pk]), {"text": "a dog with a plan"})
    assert Correction.objects.count() == 5
    first = Correction.objects.first()
    assert first
    chosen = {"action": "take_chosen", "_selected_action": [first.pk]}
    boss.post(reverse("admin:captioner_correction_changelist"), chosen)
    assert [example.correction for example in Example.objects.all()] == [first]
    page = text_of(boss.get(reverse("admin:captioner_correction_changelist") + "?taken=no"))
    assert "4 corrections" in page
    boss.post(reverse("admin:captioner_style_take", args=[style.pk]))
    assert Example.objects.filter(source=Example.Source.CORRECTION).count() == 5


def test_a_stored_photo_is_added_by_hand(style: Style, images: list[Image], boss: Client) -> None:
    address = reverse("admin:training_example_add")
    boss.post(address, {"style": style.pk, "image": images[0].pk, "text": " a  dog "})
    example = Example.objects.get()
    assert (example.text, example.source) == ("a dog", Example.Source.STORED)
    for text in ("a dog", "a  dog"):
        given = {"style": style.pk, "image": images[0].pk, "text": text}
        assert "already exists" in text_of(boss.post(address, given))
    given = {"style": style.pk, "image": images[0].pk, "text": "…"}
    assert "contains no words" in text_of(boss.post(address, given))


def test_examples_are_deleted_from_the_list_after_asking(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_examples, "PART", 2)
    for image in images[:6]:
        training_services.add_example(style=style, image=image, text="a dog", source="stored")
    kept, *gone = Example.objects.all()
    address = reverse("admin:training_example_changelist")
    chosen = {"action": "delete_chosen", "_selected_action": [example.pk for example in gone]}
    asked = text_of(boss.post(address, chosen))
    assert "Delete 5 examples?" in asked
    given = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked)
    assert Example.objects.count() == 6
    again = {name: [value for key, value in given if key == name] for name, _ in given}
    page = text_of(boss.post(address, again, follow=True))
    assert "5 examples were deleted" in page
    assert "delete_selected" not in page
    assert Example.objects.get() == kept
    logged = LogEntry.objects.filter(action_flag=DELETION).values_list("object_id", flat=True)
    assert set(logged) == {str(example.pk) for example in gone}


def test_examples_that_come_while_deleting_is_asked_about_stay(style: Style, images: list[Image], boss: Client) -> None:
    for image in images[:3]:
        training_services.add_example(style=style, image=image, text="a dog", source="stored")
    address = reverse("admin:training_example_changelist")
    all_of_them = {"action": "delete_chosen", "_selected_action": [1], "select_across": "1", "index": "0"}
    asked = text_of(boss.post(address, all_of_them))
    assert "Delete 3 examples?" in asked
    training_services.add_example(style=style, image=images[0], text="a late dog", source="stored")
    given = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked))
    assert "3 examples were deleted" in text_of(boss.post(address, given, follow=True))
    assert Example.objects.get().text == "a late dog"


def test_more_examples_than_can_be_deleted_at_once_stay(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_examples, "COUNTED", 5)
    for image in images[:6]:
        training_services.add_example(style=style, image=image, text="a dog", source="stored")
    some = {"action": "delete_chosen", "_selected_action": [1], "select_across": "1", "index": "0", "sure": "1"}
    page = text_of(boss.post(reverse("admin:training_example_changelist"), some, follow=True))
    assert "More than 5 rows are selected" in page
    assert Example.objects.count() == 6


def test_the_dataset_page_tells_what_there_is(style: Style, images: list[Image], boss: Client) -> None:
    for image in images[:10]:
        training_services.add_example(style=style, image=image, text="a dog with a plan", source="imported")
    page = text_of(boss.get(reverse("admin:captioner_style_dataset", args=[style.pk])))
    for text in ("a dog with a plan", "<b>10</b> examples", "5.0 words on average"):
        assert text in page


# Captions, many


def test_failed_captions_are_tried_again_and_queued_ones_canceled_from_the_list(
    style: Style, images: list[Image], boss: Client
) -> None:
    failed = make_captions(style, images, 3, status=Status.FAILED, error_code="worker_lost", error_detail="lost")
    done = make_captions(style, images, 2)
    address = reverse("admin:captioner_caption_changelist")
    chosen = {"_selected_action": [caption.pk for caption in failed + done]}
    page = text_of(boss.post(address, {**chosen, "action": "retry_chosen"}, follow=True))
    assert "3 captions were queued again" in page
    assert "2 failed" in page
    boss.post(address, {**chosen, "action": "cancel_chosen"})
    assert Caption.objects.filter(status=Status.CANCELED).count() == 3


def test_captions_that_the_models_are_not_sure_about_are_found_and_shown_as_such(
    style: Style, images: list[Image], boss: Client
) -> None:
    others = [{"text": "a wolf", "confidence": 0.1, "log_probability": -1.5}]
    unsure, corrected = make_captions(style, images, 2, text="a dog", confidence=0.3, alternatives=others)
    services.correct_caption(Viewer(User.objects.get(username="boss")), corrected.pk, "A cat.")
    make_captions(style, images, 1, text="a house", confidence=0.9)
    least = {"text": "", "confidence": 0.2, "min_confidence": 0.5}
    withheld = make_captions(style, images, 1, **least)[0]
    address = reverse("admin:captioner_caption_changelist")
    page = text_of(boss.get(address))
    for words in ("90 %", "30 %, not sure", "withheld: its confidence is below the requested minimum"):
        assert page.count(words) == 1
    doubtful, others_ = (text_of(boss.get(f"{address}?unsure={value}")) for value in ("true", "false"))
    for caption in (unsure, withheld):
        assert f"{caption.pk}/change/" in doubtful
        assert f"{caption.pk}/change/" not in others_
    assert f"{corrected.pk}/change/" in others_
    shown = text_of(boss.get(reverse("admin:captioner_caption_change", args=[unsure.pk])))
    assert "Not sure about this one: see the alternatives." in shown
    assert "10 %" in shown
    shown = text_of(boss.get(reverse("admin:captioner_caption_change", args=[corrected.pk])))
    assert "30 %, for the original caption" in shown
    assert "Not sure" not in shown


def test_a_failure_is_tried_again_from_the_dashboard(style: Style, images: list[Image], boss: Client) -> None:
    caption = make_captions(style, images, 1, status=Status.FAILED, error_code="x", error_detail="it was lost")[0]
    retry = reverse("admin:captioner_caption_retry", args=[caption.pk])
    page = text_of(boss.get(reverse("admin:index")))
    assert "it was lost" in page
    assert retry in page
    answer = boss.post(retry, headers={"Referer": "http://testserver/admin/"})
    assert text_of(answer) == "http://testserver/admin/"
    caption.refresh_from_db()
    assert caption.status == Status.QUEUED
    answer = boss.post(retry, headers={"Referer": "http://evil.example/"})
    assert text_of(answer) == reverse("admin:captioner_caption_changelist")


def test_a_failed_import_is_on_the_dashboard(style: Style, members: dict[str, Client]) -> None:
    now = timezone.now()
    failed = {"status": Status.FAILED, "error_code": "bad_zip", "error_detail": "it is no zip", "deadline_at": now}
    batch = Import.objects.create(style=style, name="photos.zip", finished_at=now, **failed)
    Import.objects.create(style=style, name="old.zip", finished_at=now - timedelta(days=2), **failed)
    for group, client in members.items():
        page = text_of(client.get(reverse("admin:dashboard")))
        assert reverse("admin:training_import_change", args=[batch.pk]) in page
        assert "it is no zip" in page
        assert "old.zip" not in page
        assert (reverse("admin:training_import_resume", args=[batch.pk]) in page) == (group == "Trainers")


def plans(address: str, client: Client, table: str) -> list[tuple[str, str]]:
    """The page's queries of the table, each with how the database goes about it."""
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200, address
    found = []
    for query in queries.captured_queries:
        if query["sql"].startswith("SELECT") and f'FROM "{table}"' in query["sql"]:
            with connection.cursor() as cursor:
                cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
                found.append((query["sql"], "\n".join(row[3] for row in cursor.fetchall())))
    return found


@pytest.mark.parametrize(
    ("table", "filters"),
    [
        ("captioner_image", []),
        ("captioner_caption", ["status__exact=failed", "style__id__exact=1"]),
        ("captioner_correction", []),
        ("captioner_draftrequest", []),
        ("captioner_webhookdelivery", ["status__exact=failed"]),
        ("training_example", ["style__id__exact=1"]),
    ],
)
def test_a_big_list_begins_with_the_newest_rows_and_no_query_of_it_reads_or_sorts_the_others(
    table: str,
    filters: list[str],
    style: Style,
    images: list[Image],
    boss: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_base, "SEARCHED", 1)
    populate(style, images, 2)
    now = timezone.now()
    for request in CaptionRequest.objects.all():
        WebhookDelivery.objects.create(request=request, url="https://example.com/", secret="", deadline_at=now)
    DraftRequest.objects.create(style=style)
    address = reverse(f"admin:{table}_changelist")
    for query, plan in plans(address, boss, table):
        assert "TEMP B-TREE" not in plan, (query, plan)
        assert f"SCAN {table}" not in plan or "LIMIT" in query or "_newest" in plan, (query, plan)
    searched = ["q=dog"] if site._registry[apps.get_model(table.replace("_", "."))].search_fields else []
    for narrowed in (f"created_at__year={now.year}&created_at__month={now.month}", *searched, *filters):
        for query, plan in plans(f"{address}?{narrowed}", boss, table):
            assert "TEMP B-TREE" not in plan, (query, plan)
            ends = "ORDER BY 1 " in query  # the time of the first, the last or the last searched
            assert ends or f"SEARCH {table}" in plan, (query, plan)


def test_corrections_of_a_style_are_found_without_reading_its_captions(
    style: Style, images: list[Image], boss: Client
) -> None:
    populate(style, images, 2)
    address = f"{reverse('admin:captioner_correction_changelist')}?taken=no&style="
    assert "2 corrections" in text_of(boss.get(address + style.slug))
    assert "0 corrections" in text_of(boss.get(address + "factual"))
    for query, plan in plans(address + style.slug, boss, "captioner_correction"):
        assert "caption_by_style" not in plan, (query, plan)
        assert "TEMP B-TREE" not in plan, (query, plan)


def test_captions_are_compared_without_reading_all_of_them(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_scores, "LOOKED_THROUGH", 7)
    make_captions(style, images[:1], 20)
    active, idle = style.active_version, make_version(style)
    assert active
    address = f"{reverse('admin:captioner_mapperversion_compare')}?version={active.pk}&version={idle.pk}"
    read = plans(address, boss, "captioner_caption")
    assert len(read) == 2
    for query, plan in read:
        assert "LIMIT 7" in query
        assert "caption_by_version" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_a_long_queue_is_counted_to_a_bound(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_base, "COUNTED", 3)
    make_captions(style, images, 3, status=Status.QUEUED, finished_at=None)
    assert "<b>3</b> queued" in text_of(boss.get(reverse("admin:dashboard")))
    make_captions(style, images, 3, status=Status.QUEUED, finished_at=None)
    with CaptureQueriesContext(connection) as queries:
        assert "<b>3 or more</b> queued" in text_of(boss.get(reverse("admin:dashboard")))
    counts = [q["sql"] for q in queries.captured_queries if "COUNT(" in q["sql"] and "captioner_caption" in q["sql"]]
    assert all("LIMIT 4" in sql for sql in counts)


def test_long_lists_are_counted_and_searched_to_a_bound(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_base, "COUNTED", 60)
    monkeypatch.setattr(admin_base, "SEARCHED", 10)
    make_captions(style, images, 70)
    address = reverse("admin:captioner_caption_changelist")
    with CaptureQueriesContext(connection) as queries:
        page = text_of(boss.get(address))
    assert "More than 60 rows" in page
    counts = [query["sql"] for query in queries.captured_queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 61" in sql for sql in counts)
    assert "11 captions" in text_of(boss.get(address + "?q=dog"))  # the bound's own time may have several rows


def test_dates_are_drilled_down_from_the_first_and_last_row_alone(
    style: Style, images: list[Image], boss: Client
) -> None:
    zone = timezone.get_default_timezone()
    for month, text in ((3, "a march hare"), (5, "may flowers")):
        make_captions(style, images, 1, created_at=datetime(2026, month, 9, tzinfo=zone), text=text)
    make_captions(style, images, 1, created_at=datetime(2025, 12, 31, tzinfo=zone), text="fireworks")
    address = reverse("admin:captioner_caption_changelist")
    with CaptureQueriesContext(connection) as queries:
        page = text_of(boss.get(address))
    assert not [query for query in queries.captured_queries if "DISTINCT" in query["sql"]]
    assert 'href="?created_at__year=2025">2025</a>' in page
    page = text_of(boss.get(address + "?created_at__year=2026&status__exact=succeeded"))
    assert "fireworks" not in page
    assert "status__exact=succeeded&amp;created_at__year=2026&amp;created_at__month=5" in page
    assert "June" not in page
    page = text_of(boss.get(address + "?created_at__year=2026&created_at__month=5"))
    assert "may flowers" in page
    assert "a march hare" not in page
    assert boss.get(address + "?created_at__year=2026&created_at__month=77").status_code in (200, 302)


def populate(style: Style, images: list[Image], count: int) -> None:
    """So much of everything that lists show."""
    captions = make_captions(style, images, count)
    make_captions(style, images, count, status=Status.FAILED, error_code="x", error_detail="lost")
    Correction.objects.bulk_create(Correction(caption=caption, text=f"plan {caption.pk}") for caption in captions)
    old = style.versions.first()
    assert old
    versions = [
        MapperVersion(style=style, number=old.number + 1 + i, file=old.file.name, sha256=old.sha256, origin="trained")
        for i in range(count)
    ]
    for version in MapperVersion.objects.bulk_create(versions):
        services.promote(version=version, reason="next")
        make_run(style, status=Status.FAILED, finished_at=timezone.now(), error_code="x", version=version)
        batch = Import.objects.create(
            style=style, name="zip", status="succeeded", finished_at=timezone.now(), deadline_at=timezone.now()
        )
        training_services.add_example(
            style=style, image=images[0], text=f"dog {uuid.uuid4()}", source="imported", batch=batch
        )
    Worker.objects.bulk_create(Worker(name=str(uuid.uuid4()), queue="captions") for _ in range(count))
    Style.objects.bulk_create(Style(slug=str(uuid.uuid4()), name="another") for _ in range(count))


def test_no_list_makes_more_queries_for_more_rows(style: Style, images: list[Image], boss: Client) -> None:
    lists = ["image", "caption", "correction", "mapperversion", "promotion", "style", "worker"]
    addresses = [reverse(f"admin:captioner_{name}_changelist") for name in lists]
    addresses += [reverse(f"admin:training_{name}_changelist") for name in ("trainingrun", "import", "example")]
    addresses += [reverse("admin:dashboard"), reverse("admin:captioner_style_change", args=[style.pk])]
    addresses += [reverse("admin:captioner_image_change", args=[images[0].pk])]

    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as context:
            assert boss.get(address).status_code == 200, address
        return len(context)

    cache.set("training-looked-after", True)  # which pages do every three seconds, and so now and then in between
    populate(style, images, 2)
    for address in addresses:
        boss.get(address)  # what is looked up once and kept
    few = {address: queries(address) for address in addresses}
    populate(style, images, 9)
    assert {address: queries(address) for address in addresses} == few


# Pages


def test_no_page_needs_more_than_the_content_security_policy_allows(
    addresses: dict[str, str], style: Style, boss: Client
) -> None:
    for name, address in addresses.items():
        response = boss.get(address)
        if response.status_code == 405 or not response.get("Content-Type", "").startswith("text/html"):
            continue
        assert "default-src 'self'" in response["Content-Security-Policy"], name
        page = text_of(response)
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", page), name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page), name


def test_drawings_hold_strange_numbers_and_names() -> None:
    assert "No training steps" in loss_curves([], [])
    assert "polyline" in loss_curves([[1, 4.0, 0.0]], [])
    assert "circle" in loss_curves([], [(5, 2.0, 2.0)])
    assert "nothing yet" in bars([], {"captions": []}, "Lengths")
    assert "nothing yet" in bars(["1"], {"captions": [0]}, "Lengths")
    assert "&lt;b&gt;" in bars(["<b>"], {"captions": [1]}, "Lengths")
    drawn = score_bars({"CIDEr": {"<v1>": 0.0, "v2": 1.2}, "SPICE": {"v2": 0.1}}, "Scores")
    assert "&lt;v1&gt;" in drawn
    assert drawn.count("<rect") == 3


def test_addresses_that_lead_nowhere_say_so(boss: Client, style: Style) -> None:
    nobody = uuid.uuid4()
    for address in (
        reverse("admin:captioner_caption_change", args=[nobody]),
        reverse("admin:captioner_caption_change", args=["nonsense"]),
        reverse("admin:captioner_image_file", args=[nobody]),
        reverse("admin:training_trainingrun_change", args=["9" * 30]),
        reverse("admin:captioner_mapperversion_compare") + "?version=x",
        "/admin/queues/lunch/pause/",
    ):
        assert boss.get(address).status_code == 404, address
    assert boss.get(reverse("admin:captioner_style_take", args=[style.pk])).status_code == 405


def test_tries_that_failed_and_workers_that_paused_themselves_are_told(
    style: Style, images: list[Image], boss: Client, run: TrainingRun
) -> None:
    (row,) = make_captions(style, images, 1, status=Status.QUEUED, finished_at=None, text="")
    Caption.objects.update(deadline_at=timezone.now() + timedelta(hours=1))
    (row,) = Caption.objects.claim("w1@host", 1)
    row.hand_back(Failure("out_of_memory", "the worker has too little memory"))
    page = text_of(boss.get(reverse("admin:captioner_caption_change", args=[row.pk])))
    assert "w1@host" in page
    assert "the worker has too little memory" in page

    TrainingRun.objects.filter(pk=run.pk).update(attempts=1)
    assert run.hand_back(Failure("image_missing", "the stored image cannot be read"))
    page = text_of(boss.get(reverse("admin:training_trainingrun_change", args=[run.pk])))
    assert "the stored image cannot be read" in page

    Worker.objects.create(name="w1@host", queue="captions", trouble="the worker has too little memory")
    page = text_of(boss.get(reverse("admin:dashboard")))
    assert "paused automatically" in page
    assert "the worker has too little memory" in page
