"""Runs that start automatically."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.jobs.job import UNFINISHED, Status, clock
from captioner.models import Poll
from training.models import Example, Policy, TrainingRun
from training.options import SOURCES
from training.services.examples import newest_example, open_corrections, take_corrections
from training.services.runs import start_run

NIGHT = range(2, 5)  # hours, in the site's time zone
REFUSED_FOR = timedelta(hours=1)  # until a policy whose run was refused is looked at again


def start_due_runs() -> int:
    """Start the runs that policies ask for. Safe to call by anyone, at any time.

    Returns:
        How many were started.
    """
    started = 0
    now = clock("default")
    unfinished = TrainingRun.objects.filter(style=OuterRef("style"), status__in=UNFINISHED)
    patient = Policy.objects.exclude(refused_at__gt=now - REFUSED_FOR)
    for policy in patient.filter(~Exists(unfinished)).exclude(style__status="archived").select_related("style"):
        reason = _due(policy)
        if not reason:
            if policy.refusal:  # what was to be fixed is, or nobody asks any more
                Policy.objects.filter(pk=policy.pk).update(refusal="", refused_at=None)
            continue
        refusal = ""
        try:
            with transaction.atomic():
                take_corrections(open_corrections(policy.style))
                start_run(style=policy.style, reason=reason)
            started += 1
        except Refused as error:  # then nothing was taken; it is tried again later, and the style's page tells why
            refusal = error.detail if error.code != "run_in_progress" else ""
        Policy.objects.filter(pk=policy.pk).update(refusal=refusal, refused_at=now if refusal else None)
    return started


def promote_preferred(poll: Poll) -> None:
    """Put the candidate of a blind vote that has ended in service, if people prefer it and the style's policy asks for
    that.

    Raises:
        Refused: it cannot be put in service.
    """
    version = poll.candidate
    asked = Policy.objects.filter(style=version.style_id, if_better=Policy.Action.VOTE).exists()
    preferred = captioner_services.standing(poll).preference.verdict == "better"
    if asked and preferred and version.style.version_in_service == poll.opponent:
        captioner_services.promote(version=version, reason=captioner_services.poll_sentence(poll))


def _due(policy: Policy) -> str:
    """Why a policy asks for a run now; "" if it does not."""
    style, waiting = policy.style, open_corrections(policy.style)
    if policy.after_corrections:
        # Counted since the last run on corrections, of any outcome: one that fails is not begun again and again.
        last = newest_example(style.runs.all(), {Example.Source.CORRECTION})
        taken = style.examples.filter(source=Example.Source.CORRECTION, pk__gt=last)
        if (count := waiting.count() + taken.count()) >= policy.after_corrections:
            return f"{count} new corrections"
    here = timezone.localtime()
    if policy.every_night and here.hour in NIGHT:
        tonight = here.replace(hour=NIGHT.start, minute=0, second=0, microsecond=0)
        last = newest_example(style.runs.filter(status=Status.SUCCEEDED), set(SOURCES))
        if not style.runs.filter(created_at__gte=tonight).exists() and (
            waiting.exists() or style.examples.filter(pk__gt=last).exists()
        ):
            return "new examples"
    return ""
