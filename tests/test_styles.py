"""A style from service to its end: withdrawn, brought back, archived, deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission, User
from django.core.files.base import ContentFile
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from captioner import services
from captioner.admin.styles import StyleAdmin
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.models import AuditEntry, Caption, MapperVersion, Promotion, Style, Viewer
from tests.people import client_of, program_of
from training import services as training_services
from training.models import Example, Policy, TrainingRun


@pytest.fixture
def plain(db: None, media: Any) -> dict[str, Style]:
    """Two styles in service as far as pages can tell, factual the default one."""
    for slug in ("factual", "romantic"):
        style = Style.objects.create(slug=slug, name=slug.capitalize(), is_default=slug == "factual")
        version = style.versions.create(number=1, sha256="0" * 64, origin=MapperVersion.Origin.SHIPPED)
        version.file.save("mapper", ContentFile(b"x"))
        Promotion.objects.create(style=style, version=version)
    return {style.slug: style for style in Style.objects.all()}


@pytest.fixture
def boss(db: None) -> APIClient:
    return program_of(User.objects.create_superuser("boss"))


@pytest.fixture
def admin(boss: APIClient) -> Client:
    return client_of(User.objects.get(username="boss"))


def refused(code: str) -> Any:
    return pytest.raises(Refused, check=lambda error: error.code == code)


def test_a_withdrawn_style_is_offered_nowhere_and_told_of_where_it_is_asked_for(
    plain: dict[str, Style], boss: APIClient, client: Client, photo: bytes
) -> None:
    answer = boss.post("/api/styles/romantic/withdraw/")
    assert (answer.status_code, answer.json()["status"], answer.json()["version"]) == (200, "withdrawn", 1)
    assert [style["slug"] for style in client.get("/api/styles/").json()] == ["factual"]
    assert 'value="romantic"' not in client.get("/").content.decode()
    gone = client.get("/api/styles/romantic/")
    assert (gone.status_code, gone.json()["code"]) == (404, "style_withdrawn")
    assert "its captions can still be read" in gone.json()["detail"]
    asked = client.post("/api/captions/", {"image_id": "x", "style": "romantic"}, "application/json")
    assert asked.status_code == 422
    with pytest.raises(Refused, match="'romantic' was withdrawn; the styles in service are factual"):
        services.request_captions(viewer=Viewer(), images=[services.Upload(photo)], styles=["romantic"])
    assert [style.slug for style in services.choose_styles(["all"])] == ["factual"]
    entry = AuditEntry.objects.first()
    assert entry
    assert (entry.who, entry.action, entry.subject, entry.detail) == ("boss", "service", "style Romantic", "withdrawn")
    assert boss.post("/api/styles/romantic/restore/").json()["status"] == "available"
    assert [style["slug"] for style in client.get("/api/styles/").json()] == ["factual", "romantic"]


def test_what_was_requested_before_is_still_written_and_its_history_stays(
    styles: dict[str, Style], viewer: Viewer, engine: CaptionEngine, photo: bytes
) -> None:
    services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["romantic", "humorous"])
    Caption.objects.filter(style=styles["humorous"]).cancel()
    for slug in ("romantic", "humorous"):
        services.withdraw_style(styles[slug])
    services.retry_caption(viewer, Caption.objects.get(style=styles["humorous"]).pk)
    engine.work()
    assert {caption.status for caption in Caption.objects.all()} == {"succeeded"}
    client = client_of(viewer.user)
    assert len(client.get("/api/captions/?style=romantic").json()["results"]) == 1
    assert 'value="romantic"' in client.get("/gallery/").content.decode()


def test_the_default_style_stays_in_service(plain: dict[str, Style]) -> None:
    with refused("default_style"):
        services.withdraw_style(plain["factual"])
    services.withdraw_style(plain["romantic"])
    with refused("already_withdrawn"):
        services.withdraw_style(plain["romantic"])
    with refused("style_withdrawn"):
        services.set_default_style(plain["romantic"])
    with refused("already_available"):
        services.restore_style(plain["factual"])


def test_an_archived_style_takes_nothing_new(plain: dict[str, Style], viewer: Viewer, photo: bytes) -> None:
    style = plain["romantic"]
    with refused("not_withdrawn"):
        services.archive_style(style)
    services.request_captions(viewer=viewer, images=[services.Upload(photo)], styles=["romantic"])
    services.withdraw_style(style)
    with pytest.raises(Refused, match="still unfinished: 1 caption;"):
        services.archive_style(style)
    Caption.objects.cancel()
    Policy.objects.create(style=style, after_corrections=1)
    services.archive_style(style)
    caption = Caption.objects.get()
    services.correct_caption(viewer, caption.pk, "a wave in love with the shore")
    second = style.versions.create(number=2, sha256="1" * 64, origin=MapperVersion.Origin.TRAINED)
    second.file.save("mapper", ContentFile(b"x"))
    for held_out in (False, True):
        Example.objects.bulk_create(
            Example(style=style, image=caption.image, text=f"{held_out} {n}", held_out=held_out) for n in range(30)
        )
    run = TrainingRun.objects.create(
        style=style, status="canceled", finished_at=timezone.now(), deadline_at=timezone.now() + timedelta(days=1)
    )
    for action in (
        lambda: services.promote(version=second),
        lambda: services.retry_caption(viewer, caption.pk),
        lambda: training_services.resume_run(run),
        lambda: training_services.start_import(style=style, file=ContentFile(b"a,b"), name="a.csv"),
    ):
        with refused("style_archived"):
            action()
    assert training_services.start_due_runs() == 0
    assert Policy.objects.get().refusal == ""
    assert not style.imports.exists()
    services.restore_style(style)
    services.promote(version=second)


def test_a_style_is_deleted_when_nothing_needs_it(plain: dict[str, Style], boss: APIClient) -> None:
    answer = boss.delete("/api/styles/romantic/")
    assert (answer.status_code, answer.json()["code"]) == (409, "style_in_use")
    assert "1 mapper version, 1 promotion; archive it" in answer.json()["detail"]
    Style.objects.create(slug="empty", name="Empty")
    assert boss.delete("/api/styles/empty/").status_code == 204
    assert boss.delete("/api/styles/empty/").json()["code"] == "not_found"
    entry = AuditEntry.objects.first()
    assert entry
    assert (entry.action, entry.subject) == ("deleted", "style Empty")


def test_who_trains_is_told_which_permission_it_takes(plain: dict[str, Style]) -> None:
    user = User.objects.create_user("trainer")
    user.user_permissions.add(Permission.objects.get(codename="change_style"))
    client = program_of(user)
    for answer in (client.post("/api/styles/romantic/withdraw/"), client.delete("/api/styles/romantic/")):
        assert answer.status_code == 403
        assert "ask an administrator" in answer.json()["detail"]
    assert "Can add promotion" in client.post("/api/styles/romantic/archive/").json()["detail"]


def test_the_admin_offers_what_can_be_done_next(plain: dict[str, Style], admin: Client) -> None:
    style = plain["romantic"]
    page = reverse("admin:captioner_style_change", args=[style.pk])

    def shown() -> str:
        return admin.get(page).content.decode()

    def buttons() -> list[str]:
        return [name for name in ("withdraw", "restore", "archive") if f'form="{name}"' in shown()]

    def press(name: str) -> str:
        address = reverse(f"admin:captioner_style_{name}", args=[style.pk])
        return admin.post(address, HTTP_REFERER=f"http://testserver{page}", follow=True).content.decode()

    assert buttons() == ["withdraw"]
    assert "captions requested before are still generated" in press("withdraw")
    assert buttons() == ["restore", "archive"]
    assert "Romantic was archived" in press("archive")
    assert buttons() == ["restore"]
    assert "archived" in admin.get(reverse("admin:index")).content.decode()
    assert "Romantic is available" in press("restore")
    assert "cannot be deleted: it is needed by" in press("remove")
    assert Style.objects.filter(pk=style.pk).exists()


def test_captioners_own_pages_of_a_style_need_nothing_that_training_adds(
    plain: dict[str, Style], boss: APIClient, rf: RequestFactory
) -> None:
    own, request = StyleAdmin(Style, site), rf.get("/")
    request.user = User.objects.get(username="boss")
    page = own.change_view(request, str(plain["romantic"].pk)).render().content.decode()  # type: ignore[attr-defined]
    assert "<h2>Service history</h2>" in page
    assert "Next step" not in page
    form = own.add_view(request).render().content.decode()  # type: ignore[attr-defined]
    assert 'name="slug"' in form


def test_several_are_withdrawn_from_the_list_and_the_default_one_says_why_not(
    plain: dict[str, Style], admin: Client
) -> None:
    address = reverse("admin:captioner_style_changelist")
    chosen = {"_selected_action": [style.pk for style in plain.values()], "index": "0"}
    done = admin.post(address, {**chosen, "action": "withdraw_chosen"}, follow=True).content.decode()
    assert "1 styles were withdrawn." in done
    assert "1 failed: Factual is the default style" in done
    shown = admin.get(f"{address}?status__exact=withdrawn").content.decode()
    assert "Romantic" in shown
    assert ">Factual</a></th>" not in shown
