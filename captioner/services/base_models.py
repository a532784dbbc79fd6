"""Which base models are in service: the cut-over from one pair to another, and back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from captioner import audit
from captioner.errors import Refused
from captioner.jobs.wakeup import wake_workers
from captioner.models import BaseModels, CutOver, MapperVersion, Style, Worker
from captioner.services.styles import styles_in_service


def find_base_models(pk: int) -> BaseModels:
    """The base models of this number.

    Raises:
        Refused: there are none.
    """
    base = BaseModels.objects.filter(pk=pk).first()
    if base is None:
        known = "; ".join(f"{row.pk}: {row}" for row in BaseModels.objects.order_by("pk"))
        raise Refused(
            "not_found", f"there are no base models of number {pk}; these are on record: {known or 'none'}", status=404
        )
    return base


def sources_here(base: BaseModels | None = None) -> tuple[str, str]:
    """What this machine loads for base models, those in service if none are given: their encoder and language model, as
    the settings would name them. It is what the settings do name where nothing is on record yet, or where a folder on
    record is not on this machine, which may have the same models elsewhere."""
    base = base or BaseModels.in_service()
    recorded = (base.encoder_source, base.language_model_source) if base else ("", "")
    folders = [Path(name.removeprefix("local-dir:")) for name in recorded if name.startswith("local-dir:")]
    if base is None or not all(folder.is_dir() for folder in folders):
        return settings.ENCODER, settings.LANGUAGE_MODEL
    return recorded


def styles_without(base: BaseModels) -> list[Style]:
    """The styles in service that would go out of service with a cut-over to these models: they have no version on
    them."""
    covered = MapperVersion.objects.in_service(base).values("style")
    return list(styles_in_service().exclude(pk__in=covered))


def cut_over(*, base: BaseModels, leave_out: Collection[Style] = (), person: Any = None, reason: str = "") -> CutOver:
    """Put these base models in service: their workers claim all captions from now on, and write them with the versions
    that were promoted for these models. To go back, cut over to the previous base models.

    Args:
        leave_out: styles that may go out of service with it, having no version on these models. What was asked of them
            before is still written by the workers of the previous base models.

    Raises:
        Refused: they are in service already, no worker has recorded what they are, none of the workers has loaded
            them, a style in service has no version on them and is not left out, or somebody else did the same at the
            same time.
    """
    try:
        with transaction.atomic():
            list(Style.objects.select_for_update(no_key=True).order_by("pk"))  # nobody promotes anything meanwhile
            last = CutOver.objects.select_related("base").first()
            _check_loaded(base, last)
            missing = styles_without(base)
            _check_left_out(base, missing, leave_out)
            _settle(last)
            done = CutOver.objects.create(
                number=(last.number if last else 0) + 1,
                base=base,
                left_out=[style.slug for style in missing],
                person=person,
                reason=reason.strip(),
            )
            BaseModels.objects.filter(pk=base.pk).update(preparing=False)
            without = f"without {', '.join(done.left_out)}" if missing else ""
            audit.record(
                audit.Action.SERVICE,
                "base models",
                "; ".join(filter(None, (f"{base} are in service", without, reason))),
                person,
            )
            transaction.on_commit(wake_workers)
    except IntegrityError as error:
        raise Refused(
            "cut_over_meanwhile", "other base models have just been put in service; look again", status=409
        ) from error
    base.preparing = False
    return done


def _check_loaded(base: BaseModels, last: CutOver | None) -> None:
    if last and last.base == base:
        raise Refused("already_in_service", f"{base} are in service already", status=409)
    if not base.encoder:
        raise Refused(
            "not_loaded",
            f"no worker has loaded {base} yet; start one: ./run worker captions --base {base.pk}",
            status=409,
        )
    alive = list(Worker.objects.alive("captions"))
    if alive and not any(worker.has_loaded(base) for worker in alive):
        raise Refused(
            "no_worker",
            f"no caption worker alive has loaded {base}, so captions would have to wait; start one first: "
            f"./run worker captions --base {base.pk}",
            status=409,
        )


def _check_left_out(base: BaseModels, missing: Collection[Style], leave_out: Collection[Style]) -> None:
    if forgotten := [style.name for style in missing if style not in leave_out]:
        raise Refused(
            "styles_missing",
            f"{', '.join(forgotten)} would go out of service, with no version on {base}; train and promote one on "
            "them, or leave the style out",
            status=409,
            field="leave_out",
        )
    if default := next((style for style in missing if style.is_default), None):
        raise Refused(
            "default_style",
            f"{default.name} is the default style and cannot be left out; make another one the default first",
            status=409,
            field="leave_out",
        )


def _settle(last: CutOver | None) -> None:
    """Write down what has been taken for a part of the models that were in service until now."""
    if last is None:
        return
    for relation in BaseModels._meta.related_objects:
        if relation.field.name == "base_models":
            relation.related_model._default_manager.filter(base_models=None).update(base_models=last.base)
