"""Versions in the admin: promoted, compared, downloaded, imported and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import (
    Caption,
    Image,
    MapperVersion,
    Promotion,
    Style,
)
from tests.admin.rows import SHIPPED, make_captions, make_run, make_version, scores, text_of
from tests.servers import small_files
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


# Promotion


def test_a_versions_page_says_whether_it_is_in_service_and_which_run_made_it(
    style: Style, run: TrainingRun, boss: Client
) -> None:
    first, second = style.version_in_service, make_version(style, candidate=scores(0.4))
    assert first
    TrainingRun.objects.filter(pk=run.pk).update(version=second)

    def page(version: MapperVersion) -> str:
        return text_of(boss.get(reverse("admin:captioner_mapperversion_change", args=[version.pk])))

    def title(version: MapperVersion) -> str:
        return text_of(boss.get(reverse("admin:captioner_mapperversion_promote", args=[version.pk])))

    in_service = '<span class="state succeeded">in service</span>'
    assert in_service in page(first)
    assert (in_service in page(second), "Promote…" in page(second)) == (False, True)
    assert f"version={first.pk}" in page(second)
    assert f">run {run.pk}</a>" in page(second)
    assert f"Promote {second}" in title(second)
    services.promote(version=second)
    assert in_service in page(second)
    assert (in_service in page(first), "Put back in service…" in page(first)) == (False, True)
    assert f"Roll back to {first}" in title(first)


def test_a_worse_version_is_promoted_only_with_a_reason_or_back(style: Style, boss: Client) -> None:
    first = style.version_in_service
    worse = make_version(style, verdict="worse", version_in_service="humorous v1", candidate=scores(0.1))
    address = reverse("admin:captioner_mapperversion_promote", args=[worse.pk])
    assert "judged worse" in text_of(boss.get(address))
    for reason in ("", "  "):
        answer = text_of(boss.post(address, {"reason": reason}))
        assert "give a reason" in answer
        assert style.version_in_service == first
    assert boss.post(address, {"reason": "it is funnier"}).status_code == 302
    assert style.version_in_service == worse
    history = text_of(boss.get(reverse("admin:captioner_style_change", args=[style.pk])))
    assert "it is funnier" in history
    assert "Roll back" in history
    assert first
    services.promote(version=first)
    services.promote(version=worse)  # it has served before: a rollback needs no reason
    assert style.version_in_service == worse


def test_a_version_whose_file_is_gone_is_not_promoted(style: Style, boss: Client) -> None:
    version = make_version(style)
    version.file.storage.delete(str(version.file.name))
    answer = boss.post(reverse("admin:captioner_mapperversion_promote", args=[version.pk]), {"reason": ""})
    assert "missing from the storage" in text_of(answer)
    assert style.version_in_service != version
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
    assert style.version_in_service != imported


def test_a_file_that_is_no_mapper_is_refused_beside_its_field(style: Style, boss: Client) -> None:
    file = SimpleUploadedFile("cat.pt", b"PK\x03\x04 meow")
    count = style.versions.count()
    answer = boss.post(reverse("admin:captioner_mapperversion_import"), {"style": style.pk, "file": file})
    assert "checkpoint cat.pt is damaged" in text_of(answer)
    assert style.versions.count() == count


def test_only_a_version_that_never_served_is_deleted_and_its_file_with_it(
    style: Style, images: list[Image], boss: Client, django_capture_on_commit_callbacks: Any
) -> None:
    current = style.version_in_service
    assert current
    unused, base, writer = (make_version(style) for _ in range(3))
    run = make_run(style, status=Status.FAILED, finished_at=timezone.now(), error_code="x")
    TrainingRun.objects.filter(pk=run.pk).update(base=base, version=unused)
    caption = make_captions(style, images, 1)[0]
    Caption.objects.filter(pk=caption.pk).update(version=writer)
    for version, why in ((current, "in service"), (base, "a training run"), (writer, "wrote captions")):
        with pytest.raises(Refused, match=why):
            services.delete_version(version)
    with django_capture_on_commit_callbacks(execute=True):
        boss.post(reverse("admin:captioner_mapperversion_remove", args=[unused.pk]))
    assert not MapperVersion.objects.filter(pk=unused.pk).exists()
    assert not unused.file.storage.exists(str(unused.file.name))
    run.refresh_from_db()
    assert run.version is None


def test_a_version_that_may_not_go_leaves_no_trace_of_its_deletion(style: Style, boss: Client) -> None:
    current = style.version_in_service
    assert current
    page = boss.post(reverse("admin:captioner_mapperversion_remove", args=[current.pk]), follow=True)
    assert "cannot be deleted" in text_of(page)
    assert MapperVersion.objects.filter(pk=current.pk).exists()
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
    before = style.version_in_service
    services.delete_version(MapperVersion.objects.get(pk=version.pk))
    with pytest.raises(Refused, match="was deleted"):
        services.promote(version=version)
    assert style.version_in_service == before


def test_a_mapper_for_which_there_is_no_room_is_refused(style: Style) -> None:
    file = SimpleUploadedFile("romantic.safetensors", SHIPPED.read_bytes())
    with (
        small_files(),
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

    with small_files():
        for page in (sent(version, bytes(100_000), style=style.pk), sent(examples, bytes(100_000))):
            assert page.status_code == 507
            assert "free some space" in page.content.decode()
    page = sent(version, b"no mapper", style=style.pk)
    assert page.status_code == 200
    assert page.context["form"].errors["file"]


def test_a_version_that_cannot_be_filed_leaves_no_file(style: Style, media: Path) -> None:
    before = set((media / "mappers").iterdir())
    with small_files(), pytest.raises(OSError, match="File too large"):
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
