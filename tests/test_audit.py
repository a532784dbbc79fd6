"""The audit log tells what staff and trainers did, and nobody changes it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.services import make_token
from captioner import services
from captioner.models import AuditEntry, MapperVersion, Style, Viewer
from tests.people import client_of
from training.models import Example, Import

pytestmark = pytest.mark.django_db

Action = AuditEntry.Action


@pytest.fixture
def boss(db: None) -> Client:
    """A superuser's browser."""
    client = Client(REMOTE_ADDR="192.0.2.7")
    client.force_login(User.objects.create_superuser("boss"))
    return client


@pytest.fixture
def style(styles: dict[str, Style]) -> Style:
    """One with a version that waits to be promoted."""
    shipped = settings.MODELS / "styles" / "humorous.safetensors"
    services.register_version(style=styles["humorous"], path=shipped, origin=MapperVersion.Origin.TRAINED)
    return styles["humorous"]


def read(client: Client, address: str) -> bytes:
    answer: Any = client.get(address)
    return b"".join(answer.streaming_content)


def newest() -> tuple[str, str, str, str]:
    entry = AuditEntry.objects.first()
    assert entry
    return entry.who, entry.action, entry.subject, entry.detail


def test_promotions_and_deletions_of_versions_are_recorded(boss: Client, style: Style) -> None:
    waiting = style.versions.get(number=2)
    boss.post(reverse("admin:captioner_mapperversion_promote", args=[waiting.pk]), {"reason": "funnier"})
    assert newest() == ("boss", Action.PROMOTED, "humorous v2", "funnier")
    entry = AuditEntry.objects.first()
    assert entry
    assert entry.address == "192.0.2.7"
    services.promote(version=style.versions.get(number=1))
    assert newest()[:3] == ("", Action.PROMOTED, "humorous v1")  # a command
    third = services.register_version(
        style=style, path=settings.MODELS / "styles" / "humorous.safetensors", origin=MapperVersion.Origin.TRAINED
    )
    boss.post(reverse("admin:captioner_mapperversion_remove", args=[third.pk]))
    assert newest()[:3] == ("boss", Action.DELETED, "version humorous v3")


def test_what_was_not_done_is_not_recorded(boss: Client, style: Style) -> None:
    before = AuditEntry.objects.count()
    boss.post(reverse("admin:captioner_mapperversion_remove", args=[style.versions.get(number=1).pk]))
    boss.post(reverse("admin:captioner_mapperversion_promote", args=[style.versions.get(number=1).pk]))
    assert AuditEntry.objects.count() == before


def test_changes_of_permissions_are_recorded_however_they_are_made(boss: Client) -> None:
    user = User.objects.create_user("grace")
    group = Group.objects.get(name="Trainers")
    given = {"username": "grace", "is_active": "on", "is_staff": "on", "groups": [group.pk]}
    given |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    answer = boss.post(reverse("admin:auth_user_change", args=[user.pk]), given)
    assert answer.status_code == 302, answer.content.decode()
    entries = set(AuditEntry.objects.filter(who="boss").values_list("action", "subject", "detail"))
    assert ("permissions", "user grace", "is_staff: True") in entries
    assert ("permissions", "user grace", "given Trainers") in entries
    permission = Permission.objects.get(codename="add_promotion")
    group.permissions.add(permission)
    assert newest()[:3] == ("", Action.PERMISSIONS, "group Trainers")
    assert "Can add promotion" in newest()[3]
    user.user_permissions.add(permission)
    user.user_permissions.clear()
    assert newest() == ("", Action.PERMISSIONS, "user grace", "taken: all")
    user.groups.remove(group)
    assert newest()[3] == "taken Trainers"
    User.objects.create_superuser("second")
    assert newest() == ("", Action.PERMISSIONS, "user second", "made with is_staff, is_superuser")
    boss.post(reverse("admin:auth_user_delete", args=[user.pk]), {"post": "yes"})
    assert newest()[:3] == ("boss", Action.DELETED, "user grace")


def test_what_lets_an_administrator_sign_in_as_somebody_is_recorded(boss: Client) -> None:
    user = User.objects.create_user("grace")
    first, second = (TOTPDevice.objects.create(user=user, name=name) for name in ("phone", "tablet"))
    removed = ("boss", Action.PERMISSIONS, "user grace", "two-factor authentication removed")
    boss.post(reverse("admin:otp_totp_totpdevice_delete", args=[first.pk]), {"post": "yes"})
    assert newest() == removed
    before = AuditEntry.objects.count()
    chosen = {"action": "delete_selected", "_selected_action": [second.pk], "post": "yes"}
    boss.post(reverse("admin:otp_totp_totpdevice_changelist"), chosen)
    assert (AuditEntry.objects.count(), newest()) == (before + 1, removed)
    assert not TOTPDevice.objects.exists()
    password = {"password1": "a long new one 17", "password2": "a long new one 17", "usable_password": "true"}
    answer = boss.post(reverse("admin:auth_user_password_change", args=[user.pk]), password)
    assert answer.status_code == 302, answer.content.decode()
    assert newest() == ("boss", Action.PERMISSIONS, "user grace", "password set")


def test_signing_in_and_making_groups_is_nothing_to_record(viewer: Viewer) -> None:
    Client().force_login(viewer.user)
    assert not AuditEntry.objects.filter(subject__contains="ada").exists()
    assert not AuditEntry.objects.filter(subject__contains="group").exists()


def test_exports_and_imports_are_recorded(boss: Client, style: Style) -> None:
    version = style.versions.get(number=1)
    file = SimpleUploadedFile("photos.csv", b"file,caption\r\na.jpg,a dog\r\n")
    boss.post(reverse("admin:captioner_style_import", args=[style.pk]), {"file": file})
    assert newest() == ("boss", Action.IMPORTED, "examples for Humorous", "photos.csv")
    for address, subject in (
        (reverse("admin:captioner_mapperversion_download", args=[version.pk]), "the mapper of humorous v1"),
        (reverse("admin:training_import_rejected", args=[Import.objects.get().pk]), "rejected rows of photos.csv for"),
        (reverse("download-csv") + "?q=dog", "captions as csv"),
        (reverse("download-json"), "captions as json"),
    ):
        read(boss, address)
        who, action, what, detail = newest()
        assert (who, action) == ("boss", Action.EXPORTED)
        assert what.startswith(subject)
        assert detail == ("q=dog" if "csv?" in address else "")


def test_what_people_do_with_what_is_theirs_is_not_recorded(viewer: Viewer, styles: Any, photo: bytes) -> None:
    client = client_of(viewer.user)
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["all"])
    mine, others, _ = request.captions.all()
    before = AuditEntry.objects.count()
    read(client, reverse("download-csv"))
    client.delete(f"/api/captions/{mine.pk}/")
    assert AuditEntry.objects.count() == before
    _, token = make_token(User.objects.create_superuser("root"), name="a")
    program = Client(headers={"Authorization": f"Token {token}"})
    assert program.delete(f"/api/captions/{others.pk}/").status_code == 204
    assert newest()[:3] == ("root", Action.DELETED, f"caption {others.pk}")


def test_deleted_examples_are_named_and_counted(boss: Client, style: Style, photo: bytes, viewer: Viewer) -> None:
    request = services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["humorous"])
    image = request.captions.get().image
    texts = [f"a dog {n}" for n in range(30)]
    Example.objects.bulk_create(Example(style=style, image=image, text=text, held_out=False) for text in texts)
    chosen = {"action": "delete_chosen", "_selected_action": [1], "select_across": "1", "index": "0", "sure": "1"}
    boss.post(reverse("admin:training_example_changelist"), chosen)
    assert not Example.objects.exists()
    who, action, subject, detail = newest()
    assert (who, action, subject) == ("boss", Action.DELETED, "30 examples")
    assert "a dog 29" in detail
    assert detail.endswith("… 30 in all")


def test_queues_and_the_default_style_are_recorded(boss: Client, style: Style) -> None:
    boss.post(reverse("admin:pause-queue", args=["captions"]), {"reason": "new disk"})
    assert newest() == ("boss", Action.SERVICE, "queue captions", "paused: new disk")
    boss.post(reverse("admin:resume-queue", args=["captions"]))
    assert newest()[3] == "resumed"
    boss.post(reverse("admin:captioner_style_default", args=[style.pk]))
    assert newest()[:3] == ("boss", Action.SERVICE, "style Humorous")


def test_it_is_added_to_and_never_changed(boss: Client, style: Style) -> None:
    services.set_default_style(style)
    entry = AuditEntry.objects.get(action=Action.SERVICE)
    for change in (
        lambda: AuditEntry.objects.all().delete(),
        lambda: AuditEntry.objects.update(who="eve"),
        lambda: AuditEntry.objects.bulk_update([entry], ["who"]),
        entry.delete,
        entry.save,
    ):
        with pytest.raises(TypeError, match="cannot be changed"), transaction.atomic():
            change()
    page = reverse("admin:captioner_auditentry_change", args=[entry.pk])
    shown = boss.get(page).content.decode()
    assert "style Humorous" in shown
    assert 'name="_save"' not in shown
    assert boss.post(page, {"who": "eve"}).status_code == 403
    assert boss.post(reverse("admin:captioner_auditentry_delete", args=[entry.pk]), {"post": "yes"}).status_code == 403


def test_it_is_filtered_by_deed_date_and_words(boss: Client, style: Style) -> None:
    services.set_default_style(style)
    services.promote(version=style.versions.get(number=2), reason="funnier")
    address = reverse("admin:captioner_auditentry_changelist")
    for query, shown in (("action__exact=promoted", False), ("q=Humorous", True), ("q=nobody", False)):
        page = boss.get(f"{address}?{query}").content.decode()
        assert ("used when a request names none" in page) == shown, query
    assert "funnier" in boss.get(f"{address}?action__exact=promoted").content.decode()
    today = AuditEntry.objects.latest("created_at").created_at.date()
    for day, shown in ((today, True), (today - timedelta(days=1), False)):
        of_day = f"created_at__year={day.year}&created_at__month={day.month}&created_at__day={day.day}"
        assert ("used when a request names none" in boss.get(f"{address}?{of_day}").content.decode()) == shown
