"""Base models are a row: which pair is in service, what belongs to one, and what its workers claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from captioner import services
from captioner.api import health
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import (
    AuditEntry,
    BaseModels,
    CutOver,
    Draft,
    Embedding,
    Image,
    MapperVersion,
    Style,
    Worker,
)
from captioner.search import meaning
from tests.base_models.pair import Base, ask, written


def test_the_first_worker_records_its_models_and_they_come_into_service_with_the_versions_there_are(
    style: Style, today: Base, tmp_path: Path
) -> None:
    before = today.version(style, tmp_path)
    services.promote(version=before)
    assert (before.base_models, style.version_in_service) == (None, before), "as before any worker has started"
    base = today.starts()
    assert (BaseModels.in_service(), base.status) == (base, "in_service")
    before.refresh_from_db()
    assert (before.base_models, style.version_in_service) == (base, before)
    assert today.starts() == base, "a second worker finds the row"
    assert CutOver.objects.count() == 1


def test_a_folder_that_was_renamed_holds_the_same_models(today: Base, tmp_path: Path) -> None:
    base = today.starts()
    renamed = {name: f"renamed@{identity.split('@')[1]}" for name, identity in today.identities.items()}
    assert BaseModels.record(**renamed, encoder_source="x", language_model_source="y") == base


def test_a_worker_of_other_models_records_them_and_changes_nothing(
    plain: Style, today: Base, tomorrow: Base, photo: bytes
) -> None:
    other = tomorrow.starts()
    assert (other.status, BaseModels.in_service()) == ("retired", today.starts())
    caption = ask(photo, plain)
    assert tomorrow.engine.work() == 0
    assert today.engine.work() == 1
    assert written(caption) == plain.version_in_service


def test_a_version_for_models_out_of_service_is_used_once_they_are_in_service_and_the_way_back_is_the_same(
    plain: Style, today: Base, tomorrow: Base, photo: bytes, tmp_path: Path
) -> None:
    old, now, then = plain.version_in_service, today.starts(), tomorrow.starts()
    new = tomorrow.version(plain, tmp_path)
    services.promote(version=new)
    assert plain.version_in_service == old, "a promotion on other base models changes nothing now"
    assert plain.version_on(then) == new
    with pytest.raises(Refused, match="already in service"):
        services.promote(version=new)
    first = ask(photo, plain)
    services.cut_over(base=then, reason="larger models")
    assert (plain.version_in_service, then.status, now.status) == (new, "in_service", "retired")
    assert today.engine.work() == 0, "what had been queued is for those in service now"
    assert tomorrow.engine.work() == 1
    assert written(first) == new
    second = ask(photo, plain)
    services.cut_over(base=now)
    assert tomorrow.engine.work() == 0
    assert today.engine.work() == 1
    assert written(second) == old
    recorded = AuditEntry.objects.filter(subject="base models").values_list("detail", flat=True)
    assert [detail.split(";")[-1].strip() for detail in recorded][-1] == "larger models"


def test_a_batch_claimed_before_the_cut_over_is_written_by_the_models_that_claimed_it(
    plain: Style, today: Base, tomorrow: Base, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, then = plain.version_in_service, tomorrow.starts()
    services.promote(version=tomorrow.version(plain, tmp_path))
    caption, process = ask(photo, plain), today.engine._process

    def cut_over_meanwhile(rows: Any) -> None:
        services.cut_over(base=then)
        process(rows)

    monkeypatch.setattr(today.engine, "_process", cut_over_meanwhile)
    assert today.engine.work() == 1
    assert written(caption) == old


def test_a_cut_over_is_refused_while_a_style_would_go_out_of_service_unless_it_is_left_out(
    plain: Style, today: Base, tomorrow: Base, photo: bytes, tmp_path: Path
) -> None:
    now, then = today.starts(), tomorrow.starts()
    other = Style.objects.create(slug="other", name="Other")
    services.promote(version=today.version(other, tmp_path))
    services.promote(version=tomorrow.version(plain, tmp_path))
    with pytest.raises(Refused, match="Other would go out of service"):
        services.cut_over(base=then)
    with pytest.raises(CommandError, match=r"leave the style out \(--leave-out\)"):
        call_command("cut_over", then.pk)
    Style.objects.filter(pk=other.pk).update(is_default=True)
    with pytest.raises(Refused, match="default style"):
        services.cut_over(base=then, leave_out=[other])
    Style.objects.filter(pk=other.pk).update(is_default=False)
    assert BaseModels.in_service() == now
    waiting = ask(photo, other)
    call_command("cut_over", then.pk, "--leave-out", "other")
    assert CutOver.objects.latest("pk").left_out == ["other"]
    assert list(services.styles_in_service()) == [plain]
    assert tomorrow.engine.work() == 0, "it has no version for that"
    assert today.engine.work() == 1, "what was asked for before is still written"
    assert written(waiting) == other.version_on(now)
    services.cut_over(base=now)
    assert set(services.styles_in_service()) == {plain, other}, "back in service on the way back"


def test_a_cut_over_needs_models_that_a_worker_has_loaded(plain: Style, today: Base, tomorrow: Base) -> None:
    unknown = BaseModels.objects.create(encoder_source="a", language_model_source="b")
    with pytest.raises(Refused, match=f"--base {unknown.pk}"):
        services.cut_over(base=unknown, leave_out=[plain])
    then = tomorrow.starts()
    Worker.objects.filter(name="tomorrow").delete()
    with pytest.raises(Refused, match="no caption worker alive has loaded"):
        services.cut_over(base=then, leave_out=[plain])
    with pytest.raises(Refused, match="in service already"):
        services.cut_over(base=today.starts())
    assert CutOver.objects.count() == 1


def test_of_two_cut_overs_at_once_the_second_is_refused(
    plain: Style, tomorrow: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = tomorrow.starts()
    monkeypatch.setattr(CutOver.objects, "select_related", lambda *_: CutOver.objects.filter(number=0))
    with pytest.raises(Refused, match="just been put in service"):
        services.cut_over(base=then, leave_out=[plain])


def test_drafts_are_claimed_by_workers_of_their_versions_models(
    plain: Style, today: Base, tomorrow: Base, photo: bytes, tmp_path: Path
) -> None:
    tomorrow.starts()
    versions = [today.version(plain, tmp_path), tomorrow.version(plain, tmp_path)]
    services.compare_versions(versions=versions, images=[services.Upload(photo)])
    for base, version in zip((tomorrow, today), reversed(versions), strict=True):
        assert base.engine.work() == 1
        assert base.engine.work() == 0
        assert Draft.objects.get(status=Status.SUCCEEDED, version=version)


def test_what_nobody_has_assigned_belongs_to_the_models_of_before_after_a_cut_over(
    plain: Style, today: Base, tomorrow: Base, tmp_path: Path
) -> None:
    old, now, then = plain.version_in_service, today.starts(), tomorrow.starts()
    MapperVersion.objects.update(base_models=None)  # as the release before files them
    assert plain.version_in_service == old
    services.promote(version=tomorrow.version(plain, tmp_path))
    services.cut_over(base=then)
    assert old
    old.refresh_from_db()
    assert old.base_models == now


def test_nobody_is_ready_while_no_worker_has_the_models_that_serve(
    plain: Style, today: Base, tomorrow: Base, admin_client: Client
) -> None:
    base = today.starts()
    Worker.objects.all().delete()
    tomorrow.starts()
    assert "no caption worker has loaded the base models in service" in health._worker()
    page = admin_client.get(reverse("admin:index")).content.decode()
    assert f"has loaded the base models in service, {base}" in page
    today.starts()
    assert health._worker() == "ok"


def test_photos_are_compared_by_the_encoder_that_serves(plain: Style, today: Base, tomorrow: Base) -> None:
    today.starts()
    tomorrow.starts()
    image = Image.objects.create(sha256="0" * 64, file="a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    for base in (today, tomorrow):
        Embedding.objects.create(image=image, encoder=base.identities["encoder"], vector=b"")
    used = meaning.in_use(Embedding.objects.all())
    assert used
    assert used.encoder == today.identities["encoder"]
