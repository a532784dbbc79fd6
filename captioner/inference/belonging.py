"""Which queued rows the workers of which base models may claim: what they cannot write stays for those who can.

A caption is for the workers of the base models in service. Where its style was left out when these came into service,
those of the models that it was in service on last still write what had been asked for before. A draft is for the
workers of its version's models, whichever are in service.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Exists, OuterRef, Subquery

from captioner.jobs.job import JobQuerySet
from captioner.models import BaseModels, Caption, CutOver, Draft, MapperVersion, Promotion, Style


def captions_of(base: BaseModels | None) -> JobQuerySet[Any]:
    """The captions that workers with these models write. None: their models are not on record, as before the first
    worker has recorded its own."""
    in_service = BaseModels.in_service()
    if in_service is None:
        return Caption.objects.all()
    if base == in_service:
        left_out = _left_out(in_service)
        return Caption.objects.exclude(style__in=left_out) if left_out else Caption.objects.all()
    own = [style for style, last in _left_out(in_service).items() if base and last == base.pk]
    return Caption.objects.filter(style__in=own) if own else Caption.objects.none()


def drafts_of(base: BaseModels | None) -> JobQuerySet[Any]:
    """The drafts that workers with these models write."""
    if BaseModels.in_service() is None:
        return Draft.objects.all()
    if base is None:
        return Draft.objects.none()
    # By keys, so that the queue is read in its order. There are none while an installation has only had one pair.
    others = MapperVersion.objects.exclude(pk__in=MapperVersion.objects.on(base).values("pk"))
    foreign = list(others.values_list("pk", flat=True))
    return Draft.objects.exclude(version__in=foreign) if foreign else Draft.objects.all()


def _left_out(in_service: BaseModels) -> dict[int, int]:
    """The styles with no version on the models in service, each with those that it was in service on last."""
    before = CutOver.objects.exclude(base=in_service).values("base")
    if not before.exists():
        return {}
    of_style = Promotion.objects.filter(style=OuterRef("pk"))
    last = of_style.filter(version__base_models__in=before).order_by("-pk").values("version__base_models")[:1]
    styles = Style.objects.filter(~Exists(of_style.on(in_service))).annotate(last=Subquery(last))
    return dict(styles.exclude(last=None).values_list("pk", "last"))
