"""Deletes expired data."""

from __future__ import annotations

import shutil
from datetime import timedelta

from django.db import transaction

from captioner import storage
from captioner.jobs.job import Status, clock
from training.models import Import, TrainingRun
from training.services.runs import run_folder


def prune(older_than: timedelta) -> dict[str, int]:
    """Delete what failed and canceled imports and runs that ended longer ago have left to go on from.

    Returns:
        How many `uploads` and `run folders` were deleted.
    """
    ended = {"status__in": (Status.FAILED, Status.CANCELED), "finished_at__lt": clock("default") - older_than}
    uploads = 0
    for batch in Import.objects.filter(**ended).exclude(file=""):
        name = str(batch.file.name)
        # Its row first, and only if nobody has resumed it meanwhile.
        with transaction.atomic():
            if Import.objects.filter(pk=batch.pk, **ended).update(file=""):
                storage.discard([name])
                uploads += 1
    folders = 0
    for run in TrainingRun.objects.filter(**ended).only("pk"):
        if run_folder(run).exists():
            shutil.rmtree(run_folder(run), ignore_errors=True)
            folders += 1
    return {"uploads": uploads, "run folders": folders}
