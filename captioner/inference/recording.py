"""What was decoded, put in the rows that it was decoded for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from captioner.jobs.job import clock
from captioner.models import Caption, Draft, MapperVersion
from captioner.reports import Alternative
from clipcap import captioner as library

Row = Caption | Draft


@dataclass(frozen=True)
class Written:
    """What a version wrote for a row."""

    row: Row
    version: MapperVersion
    answers: Sequence[library.Caption]  # best first
    prefix: Mapping[str, Any]  # what a draft keeps of it


def record_answers(written: Sequence[Written], encode_ms: Mapping[uuid.UUID, float], decode_ms: float) -> None:
    """Bring rows of one kind to their end, in one transaction.

    Args:
        encode_ms: how long the embedding of each image took, in milliseconds, by its id.
        decode_ms: how long the batch took to decode.
    """
    if not written:
        return
    now = clock("default")
    rows = [one.row for one in written]
    with transaction.atomic():
        type(rows[0]).objects.filter(pk__in=[row.pk for row in rows]).lock()
        Caption.objects.filter(drafts__in=[row for row in rows if isinstance(row, Draft)]).lock()
        for one in written:
            best, *others = one.answers
            values = {
                "text": best.text,
                "confidence": best.confidence,
                "log_probability": best.log_probability,
                "alternatives": [Alternative(o.text, o.confidence, o.log_probability).to_json() for o in others],
                "version": one.version,
                "encode_ms": encode_ms[one.row.image_id],
                "decode_ms": decode_ms,
            }
            if isinstance(one.row, Draft):
                one.row.finish(now, values, **one.prefix)
            else:
                one.row.succeed(now, **one.row.kept(values))
