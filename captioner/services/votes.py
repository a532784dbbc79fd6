"""Blind votes between two versions: start and end them, vote, and what they found out."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count

from captioner import audit
from captioner.errors import Refused
from captioner.jobs.job import Status, clock
from captioner.models import Image, MapperVersion, Poll, Viewer, Vote
from captioner.services.gate import whole
from captioner.services.visibility import not_found
from clipcap.evaluation.preference import Preference

log = logging.getLogger(__name__)

MOST_PHOTOS = 5000  # newest captions of each version that are voted on
# Called with a poll that has ended; the app of the policies adds what they ask for.
after_polls: list[Callable[[Poll], None]] = []


@dataclass(frozen=True)
class Ballot:
    """A photo to vote on.

    left, right: two captions of it; the voter does not know which version wrote which.
    """

    image: Image
    left: str
    right: str


@dataclass(frozen=True)
class Standing:
    """What a poll has found out so far."""

    preference: Preference
    equal: int  # votes for neither

    @property
    def votes(self) -> int:
        """All votes; what was skipped is none."""
        return self.preference.votes + self.equal


def start_poll(*, candidate: MapperVersion, opponent: MapperVersion, person: Any = None) -> Poll:
    """Have people vote which of two versions' captions is better, on the photos that both were compared on.

    Raises:
        Refused: they are of different styles or the same, such votes are under way, or nothing is there to vote on.
    """
    if candidate == opponent or candidate.style_id != opponent.style_id:
        raise Refused("invalid_versions", "choose two versions of the same style", status=422)
    if not pairs(candidate, opponent):
        raise Refused(
            "nothing_to_vote_on",
            f"{candidate} and {opponent} have not written different captions of the same photo yet; compare them on "
            "photos first",
            status=409,
        )
    try:
        with transaction.atomic():
            poll = Poll.objects.create(candidate=candidate, opponent=opponent, person=person)
            audit.record(audit.Action.VOTE, poll, "started", person)
    except IntegrityError as error:
        raise Refused("already_open", f"a blind vote of {candidate} and {opponent} is under way", status=409) from error
    return poll


def end_poll(poll: Poll, person: Any = None) -> Poll:
    """End a poll before enough is known.

    Raises:
        Refused: it has ended already.
    """
    with transaction.atomic():
        poll = _locked(poll.pk)
        audit.record(audit.Action.VOTE, poll, f"ended after {standing(poll).votes} votes", person)
        _end(poll)
    _call_policies(poll)
    return poll


def pairs(candidate: MapperVersion, opponent: MapperVersion) -> dict[uuid.UUID, tuple[str, str]]:
    """The photos that both have captioned in comparisons, with the newest caption of each; where these are the same,
    there is nothing to choose."""
    texts: list[dict[uuid.UUID, str]] = []
    for version in (candidate, opponent):
        written = version.drafts.filter(status=Status.SUCCEEDED, caption=None).exclude(text="").order_by("-created_at")
        newest: dict[uuid.UUID, str] = {}
        for image, text in written.values_list("image", "text")[:MOST_PHOTOS]:
            newest.setdefault(image, text)
        texts.append(newest)
    first, second = texts
    return {image: (text, second[image]) for image, text in first.items() if second.get(image, text) != text}


def open_polls(viewer: Viewer) -> list[Poll]:
    """The polls that the viewer may vote in, the oldest first."""
    if not viewer.votes:
        return []
    return list(
        Poll.objects.filter(ended_at=None).select_related("candidate__style", "opponent").order_by("created_at")
    )


def get_poll(viewer: Viewer, pk: uuid.UUID) -> Poll:
    """One poll, for who may vote in it.

    Raises:
        Refused: there is none, or not for this viewer.
    """
    poll = Poll.objects.select_related("candidate__style", "opponent__style").filter(pk=pk).first()
    if poll is None or not viewer.votes:
        raise not_found("blind vote", pk)
    return poll


def next_ballot(viewer: Viewer, poll: Poll, *, at: uuid.UUID | None = None) -> Ballot | None:
    """What the viewer is asked next, in an order of their own; None if nothing is left.

    Args:
        at: the photo to ask about, if it is to be voted on.
    """
    left = _left(viewer, poll)
    if not left:
        return None
    pk = at if at in left else min(left, key=lambda image: poll.coin("order", image, viewer.user.pk))
    first, second = left[pk]
    if not poll.candidate_left(pk, viewer.user.pk):
        first, second = second, first
    return Ballot(Image.objects.get(pk=pk), first, second)


def poll_photo(viewer: Viewer, pk: uuid.UUID, image: uuid.UUID) -> Image:
    """A photo that is voted on: it need not be in any list of the viewer's.

    Raises:
        Refused: there is no such poll for this viewer, or the photo is not in it.
    """
    poll = get_poll(viewer, pk)
    found = Image.objects.filter(pk=image).first() if image in pairs(poll.candidate, poll.opponent) else None
    if found is None:
        raise not_found("image", image)
    return found


def cast_vote(viewer: Viewer, pk: uuid.UUID, image: uuid.UUID, answer: str) -> Poll:
    """Say which caption of a photo is better; the poll ends as soon as enough is known, or no photo is left.

    Args:
        answer: `left`, `right`, `equal` or `skip`, as the viewer saw the captions.

    Raises:
        Refused: there is no such poll or answer, it has ended, or the photo is not to be voted on any more.
    """
    get_poll(viewer, pk)
    with transaction.atomic():
        poll = _locked(pk)
        shown_left = poll.candidate_left(image, viewer.user.pk)
        choices = {
            "left": Vote.Choice.CANDIDATE if shown_left else Vote.Choice.OPPONENT,
            "right": Vote.Choice.OPPONENT if shown_left else Vote.Choice.CANDIDATE,
            "equal": Vote.Choice.EQUAL,
            "skip": Vote.Choice.SKIPPED,
        }
        if answer not in choices:
            raise Refused("invalid_answer", f"answer with one of {', '.join(choices)}", status=422, field="answer")
        if image not in _left(viewer, poll) or not Image.lock([image]):
            raise Refused("already_voted", "somebody has voted on this photo in the meantime", status=409)
        Vote.objects.create(
            poll=poll, image_id=image, person=viewer.user, choice=choices[answer], candidate_left=shown_left
        )
        over = standing(poll).preference.verdict != "unclear" or not _unvoted(poll)
        if over:
            _end(poll)
    if over:
        _call_policies(poll)
    return poll


def last_vote(viewer: Viewer, poll: Poll) -> Vote | None:
    """What the viewer said last in a poll."""
    return poll.votes.filter(person=viewer.user).order_by("-pk").first()


def undo_vote(viewer: Viewer, pk: uuid.UUID, image: uuid.UUID) -> None:
    """Take back what the viewer said last in a poll.

    Args:
        image: the photo it is about, so that pressing twice does not undo two.

    Raises:
        Refused: there is no such poll, it has ended, or their last vote is about another photo.
    """
    get_poll(viewer, pk)
    with transaction.atomic():
        last = last_vote(viewer, _locked(pk))
        if last is None or last.image_id != image:
            raise Refused("not_last", "this is not your last vote any more, so nothing was undone", status=409)
        last.delete()


def standing(poll: Poll) -> Standing:
    """What a poll has found out so far."""
    counts: Mapping[str, int] = dict(poll.votes.order_by().values_list("choice").annotate(count=Count("pk")))
    wins, losses, equal = (
        counts.get(choice, 0) for choice in (Vote.Choice.CANDIDATE, Vote.Choice.OPPONENT, Vote.Choice.EQUAL)
    )
    return Standing(Preference(wins, losses), equal)


def poll_sentence(poll: Poll) -> str:
    """What a poll found out, in the words of the gate; while it is under way, only how many votes there are."""
    found = standing(poll)
    name, other = f"v{poll.candidate.number}", f"v{poll.opponent.number}"
    if poll.ended_at is None:
        return f"A blind vote of {name} against {other} is under way: {_votes(found.votes)} so far"
    share, (low, high) = found.preference.share, found.preference.interval
    equal = f", and {_votes(found.equal)} for neither" if found.equal else ""
    if share is None:
        return f"{name} may be better or worse than {other}: no vote for either{equal}"
    verdict = found.preference.verdict
    how = "may be better or worse than" if verdict == "unclear" else f"is {verdict} than"
    return (
        f"{name} {how} {other}: preferred in {_percent(share)} of {_votes(found.preference.votes)}, 95 % interval "
        f"{round(100 * low)} to {_percent(high)}{equal}"
    )


def polls_of(version: MapperVersion) -> list[Poll]:
    """The polls about a version as the candidate, the newest first."""
    return list(version.polls.select_related("candidate", "opponent"))


def worse_by_vote(version: MapperVersion) -> bool:
    """Whether people found a version worse than the one in service, in the last poll of the two that has ended."""
    ended = version.polls.filter(opponent=version.style.version_in_service).exclude(ended_at=None)
    last = ended.order_by("-ended_at").first()
    return last is not None and standing(last).preference.verdict == "worse"


def _left(viewer: Viewer, poll: Poll) -> dict[uuid.UUID, tuple[str, str]]:
    """What the viewer may still be asked about: nobody has voted on it, and they have not skipped it."""
    if poll.ended_at is not None:
        return {}
    asked = set(poll.votes.filter(person=viewer.user).values_list("image", flat=True))
    return {image: texts for image, texts in _unvoted(poll).items() if image not in asked}


def _unvoted(poll: Poll) -> dict[uuid.UUID, tuple[str, str]]:
    """What nobody has voted on; who has skipped it has not."""
    voted = set(poll.votes.exclude(choice=Vote.Choice.SKIPPED).values_list("image", flat=True))
    return {image: texts for image, texts in pairs(poll.candidate, poll.opponent).items() if image not in voted}


def _locked(pk: uuid.UUID) -> Poll:
    """The poll, locked: votes are counted one after the other.

    Raises:
        Refused: it has ended.
    """
    polls = Poll.objects.select_related("candidate__style", "opponent").select_for_update(of=("self",))
    poll = polls.filter(pk=pk, ended_at=None).first()
    if poll is None:
        raise Refused("poll_ended", "this blind vote has ended; thank you", status=409)
    return poll


def _end(poll: Poll) -> None:
    poll.ended_at = clock("default")
    poll.save(update_fields=["ended_at"])


def _call_policies(poll: Poll) -> None:
    for act in after_polls:
        try:
            act(poll)
        except Refused as error:  # the result stays: it can be promoted by hand
            log.warning(
                "what a policy asks for after a blind vote failed", extra={"poll": str(poll), "why": str(error)}
            )


def _votes(count: int) -> str:
    return f"{whole(count)} vote{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"
