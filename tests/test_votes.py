"""Blind votes between two versions of a style: by people, without knowing which is which, until enough is known."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.urls import reverse
from django.utils import timezone
from PIL import Image as Pillow
from playwright.sync_api import Browser, Page, expect

from captioner import services, uploads
from captioner.errors import Refused
from captioner.models import AuditEntry, Draft, DraftRequest, Image, MapperVersion, Poll, Promotion, Style, Viewer, Vote
from tests.axe import violations
from tests.browser.visits import press
from tests.people import client_of, member, program_of, window_of
from training.models import Policy


@pytest.fixture
def versions(style: Style) -> list[MapperVersion]:
    """Two, of which the first is in service."""
    made = [
        style.versions.create(
            number=n, sha256=str(n) * 64, origin="trained", config={"kind": "mlp", "prefix_length": 1}
        )
        for n in (1, 2)
    ]
    for version in made:
        version.file.save("mapper.safetensors", ContentFile(b"x"))
    Promotion.objects.create(style=style, version=made[0])
    return made


def compared(versions: list[MapperVersion], number: int, texts: tuple[str, str] = ("old {}", "new {}")) -> Image:
    """A photo that both versions were compared on."""
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), (number, 90, 90)).save(out, "PNG")
    image, now, request = uploads.store(out.getvalue()), timezone.now(), DraftRequest.objects.create()
    for version, text in zip(versions, texts, strict=True):
        Draft.objects.create(
            request=request,
            image=image,
            version=version,
            text=text.format(number),
            status="succeeded",
            finished_at=now,
            deadline_at=now,
        )
    return image


@pytest.fixture
def images(versions: list[MapperVersion]) -> list[Image]:
    return [compared(versions, number) for number in range(12)]


@pytest.fixture
def poll(versions: list[MapperVersion], images: list[Image]) -> Poll:
    """The new version against that in service."""
    old, new = versions
    return services.start_poll(candidate=new, opponent=old)


@pytest.fixture
def bob(db: None) -> Viewer:
    """A labeller."""
    return Viewer(member("bob", "Labellers"))


def answers(viewer: Viewer, poll: Poll, prefer: str, count: int = 99) -> list[Image]:
    """Vote for the captions that begin with a word, until that many are given or none is asked for any more."""
    asked: list[Image] = []
    while len(asked) < count and (ballot := services.next_ballot(viewer, poll)):
        sides = {ballot.left.split()[0]: "left", ballot.right.split()[0]: "right"}
        poll = services.cast_vote(viewer, poll.pk, ballot.image.pk, sides.get(prefer, prefer))
        asked.append(ballot.image)
    return asked


def test_it_ends_by_itself_as_soon_as_people_clearly_prefer_one(bob: Viewer, poll: Poll) -> None:
    assert len(answers(bob, poll, "new")) == 8  # of twelve photos
    poll.refresh_from_db()
    assert poll.ended_at
    expected = "v2 is better than v1: preferred in 100 % of 8 votes, 95 % interval 52 to 100 %"
    assert services.poll_sentence(poll) == expected


def test_it_says_worse_where_people_prefer_the_other(bob: Viewer, poll: Poll) -> None:
    answers(bob, poll, "old")
    poll.refresh_from_db()
    assert services.poll_sentence(poll).startswith("v2 is worse than v1: preferred in 0 % of 8 votes")


def test_it_ends_unclear_when_all_photos_are_voted_on(bob: Viewer, poll: Poll) -> None:
    answers(bob, poll, "new", 6)
    answers(bob, poll, "old", 5)
    assert Poll.objects.get().ended_at is None
    answers(bob, poll, "equal")
    poll.refresh_from_db()
    assert poll.ended_at
    sentence = services.poll_sentence(poll)
    assert sentence.startswith("v2 may be better or worse than v1: preferred in 55 % of 11 votes, 95 % interval ")
    assert sentence.endswith(", and 1 vote for neither")


def test_of_each_photo_one_vote_counts_whoever_gives_it(bob: Viewer, poll: Poll) -> None:
    eve = Viewer(member("eve", "Labellers"))
    first = answers(bob, poll, "equal", 5)
    second = answers(eve, poll, "equal", 7)
    assert not set(first) & set(second)
    with pytest.raises(Refused, match="has ended"):
        services.cast_vote(bob, poll.pk, first[0].pk, "left")


def test_two_who_look_at_the_same_photo_give_one_vote(bob: Viewer, poll: Poll, images: list[Image]) -> None:
    eve = Viewer(member("eve", "Labellers"))
    services.cast_vote(eve, poll.pk, images[0].pk, "equal")
    page = client_of(bob.user).post(reverse("vote-cast", args=[poll.pk, images[0].pk]), {"answer": "left"}, follow=True)
    assert "Somebody has voted on this photo in the meantime." in page.content.decode()
    assert Vote.objects.get().person == eve.user


def test_what_one_person_skips_is_still_asked_of_others_and_is_no_vote(bob: Viewer, poll: Poll) -> None:
    assert len(answers(bob, poll, "skip")) == 12
    assert services.standing(poll).votes == 0
    assert services.next_ballot(Viewer(member("eve", "Labellers")), poll)
    assert (
        "You have seen all photos of this vote"
        in client_of(bob.user).get(reverse("vote-poll", args=[poll.pk])).content.decode()
    )


def test_sides_are_shuffled_for_each_photo_and_person_stay_and_are_kept(
    bob: Viewer, poll: Poll, images: list[Image]
) -> None:
    eve = Viewer(member("eve", "Labellers"))
    sides = {who.user.pk: [poll.candidate_left(image.pk, who.user.pk) for image in images] for who in (bob, eve)}
    assert all({True, False} == set(shown) for shown in sides.values()) or len(set(map(tuple, sides.values()))) == 2
    ballot = services.next_ballot(bob, poll)
    assert ballot == services.next_ballot(bob, poll)
    assert ballot
    services.cast_vote(bob, poll.pk, ballot.image.pk, "left")
    vote = Vote.objects.get()
    assert vote.candidate_left == ballot.left.startswith("new")
    assert (vote.choice == "candidate") == vote.candidate_left


def test_sides_and_order_cannot_be_foretold_and_differ_between_votes(versions: list[MapperVersion]) -> None:
    image = compared(versions, 1).pk
    polls = [Poll(candidate=versions[0], opponent=versions[1]) for _ in range(64)]
    shown = [poll.candidate_left(image, 1) for poll in polls]
    assert 10 < sum(shown) < 54  # by chance, once in a thousand million


def test_the_page_says_nothing_of_versions_before_the_vote_has_ended(bob: Viewer, poll: Poll) -> None:
    client, address = client_of(bob.user), reverse("vote-poll", args=[poll.pk])
    for _ in range(8):
        page = client.get(address).content.decode()
        assert not re.search(r"\bv[12]\b|candidate|opponent|plain v", page)
        ballot = services.next_ballot(bob, poll)
        assert ballot
        answer = "left" if ballot.left.startswith("new") else "right"
        client.post(reverse("vote-cast", args=[poll.pk, ballot.image.pk]), {"answer": answer})
    page = client.get(address).content.decode()
    assert "v2 is better than v1: preferred in 100 % of 8 votes" in page


def test_undo_takes_back_the_last_vote_and_shows_its_photo_again(bob: Viewer, poll: Poll) -> None:
    client = client_of(bob.user)
    first, second = answers(bob, poll, "equal", 2)
    page = client.get(reverse("vote-poll", args=[poll.pk])).content.decode()
    undo = reverse("vote-undo", args=[poll.pk, second.pk])
    assert undo in page
    assert "You found both captions equally good." in page
    answer = client.post(undo, follow=True)
    assert reverse("vote-photo", args=[poll.pk, second.pk]) in answer.content.decode()
    assert client.post(undo).status_code == 409
    assert Vote.objects.get().image == first


def test_after_the_end_nothing_is_undone(bob: Viewer, poll: Poll) -> None:
    last = answers(bob, poll, "new")[-1]
    with pytest.raises(Refused, match="has ended"):
        services.undo_vote(bob, poll.pk, last.pk)


def test_photos_that_both_caption_alike_are_not_asked_about(versions: list[MapperVersion], bob: Viewer) -> None:
    old, new = versions
    compared(versions, 1, ("the same", "the same"))
    with pytest.raises(Refused, match="compare them on photos first"):
        services.start_poll(candidate=new, opponent=old)
    asked = compared(versions, 2)
    poll = services.start_poll(candidate=new, opponent=old)
    assert answers(bob, poll, "equal") == [asked]


def test_photos_compared_later_are_asked_about_too(versions: list[MapperVersion], bob: Viewer, poll: Poll) -> None:
    answers(bob, poll, "equal", 11)
    later = compared(versions, 40)
    assert later in answers(bob, poll, "equal")


def test_only_two_versions_of_one_style_are_voted_between_and_once_at_a_time(
    versions: list[MapperVersion], poll: Poll
) -> None:
    old, new = versions
    other = Style.objects.create(slug="other", name="Other").versions.create(number=1, sha256="2" * 64)
    for first, second in ((new, new), (new, other)):
        with pytest.raises(Refused, match="two versions of the same style"):
            services.start_poll(candidate=first, opponent=second)
    with pytest.raises(Refused, match="is under way"):
        services.start_poll(candidate=new, opponent=old)


def test_an_unknown_answer_is_refused(bob: Viewer, poll: Poll, images: list[Image]) -> None:
    answer = client_of(bob.user).post(reverse("vote-cast", args=[poll.pk, images[0].pk]), {"answer": "both"})
    assert answer.status_code == 422
    assert "Answer with one of left, right, equal, skip" in answer.content.decode()


def test_a_vote_stays_when_its_photo_is_deleted(bob: Viewer, poll: Poll) -> None:
    (image,) = answers(bob, poll, "new", 1)
    boss = Viewer(User.objects.create_superuser("boss"))
    services.delete_image(boss, image.pk, "asked to")
    assert services.standing(poll).preference.wins == 1


def test_only_who_may_label_everybodys_captions_votes_and_sees_the_photos(poll: Poll, images: list[Image]) -> None:
    outsider = Viewer(member("sam", "Viewers"))
    assert services.open_polls(outsider) == []
    assert client_of(outsider.user).get(reverse("vote")).status_code == 403
    assert client_of(outsider.user).get(reverse("vote-photo", args=[poll.pk, images[0].pk])).status_code == 404
    with pytest.raises(Refused, match="was not found"):
        services.cast_vote(outsider, poll.pk, images[0].pk, "left")


def test_the_photos_of_a_vote_and_no_others_are_shown(bob: Viewer, poll: Poll, photo: bytes) -> None:
    other = uploads.store(photo)
    assert client_of(bob.user).get(reverse("vote-photo", args=[poll.pk, other.pk])).status_code == 404


def test_the_labelling_page_leads_to_open_votes_and_without_any_the_page_says_so(bob: Viewer, poll: Poll) -> None:
    client = client_of(bob.user)
    assert "1 blind vote is open" in client.get(reverse("label")).content.decode()
    assert client.get(reverse("vote"))["Location"] == reverse("vote-poll", args=[poll.pk])
    services.end_poll(poll)
    assert "No blind vote is open" in client.get(reverse("vote")).content.decode()


def test_trainers_start_and_end_votes_on_a_versions_page(versions: list[MapperVersion], images: list[Image]) -> None:
    trainer = Viewer(member("tom", "Trainers", is_staff=True))
    client, page = client_of(trainer.user), reverse("admin:captioner_mapperversion_change", args=[versions[1].pk])
    assert "Start a blind vote against v1" in client.get(page).content.decode()
    client.post(reverse("admin:captioner_mapperversion_poll", args=[versions[1].pk, versions[0].pk]))
    poll = Poll.objects.get()
    answers(trainer, poll, "new", 3)
    shown = client.get(page).content.decode()
    assert "A blind vote of v2 against v1 is under way: 3 votes so far." in shown
    assert "preferred" not in shown
    client.post(reverse("admin:captioner_mapperversion_end_poll", args=[poll.pk]))
    shown = client.get(page).content.decode()
    assert "v2 may be better or worse than v1: preferred in 100 % of 3 votes" in shown
    assert [entry.detail for entry in AuditEntry.objects.filter(action="vote")] == ["ended after 3 votes", "started"]
    with pytest.raises(Refused, match="has ended"):
        services.end_poll(poll)


def test_a_comparison_offers_votes_between_its_versions(versions: list[MapperVersion], images: list[Image]) -> None:
    client = client_of(member("tom", "Trainers", is_staff=True))
    comparison = DraftRequest.objects.first()
    assert comparison
    page = client.get(reverse("admin:captioner_draftrequest_change", args=[comparison.pk])).content.decode()
    assert f"{versions[1]} against v1</button>" in page


def test_the_promote_page_shows_what_people_prefer_and_takes_a_reason_against_it(
    versions: list[MapperVersion], bob: Viewer, poll: Poll
) -> None:
    answers(bob, poll, "old")
    boss = Viewer(User.objects.create_superuser("boss"))
    page = client_of(boss.user).get(reverse("admin:captioner_mapperversion_promote", args=[versions[1].pk]))
    assert "v2 is worse than v1: preferred in 0 % of 8 votes" in page.content.decode()
    with pytest.raises(Refused, match="give a reason"):
        services.promote(version=versions[1])
    assert services.promote(version=versions[1], reason="it is shorter")


@pytest.mark.parametrize(
    ("policy", "prefer", "in_service"), [("vote", "new", 2), ("vote", "old", 1), ("ask", "new", 1)]
)
def test_a_policy_puts_in_service_what_people_prefer(
    policy: str, prefer: str, in_service: int, style: Style, bob: Viewer, poll: Poll
) -> None:
    Policy.objects.create(style=style, if_better=policy)
    answers(bob, poll, prefer)
    assert style.version_in_service
    assert style.version_in_service.number == in_service
    if in_service == 2:
        assert Promotion.objects.latest("pk").reason.startswith("v2 is better than v1: preferred in 100 %")


def test_a_policy_promotes_nothing_when_another_version_is_in_service_by_then(
    style: Style, bob: Viewer, poll: Poll
) -> None:
    Policy.objects.create(style=style, if_better="vote")
    third = style.versions.create(number=3, sha256="3" * 64, origin="trained")
    Promotion.objects.create(style=style, version=third)
    answers(bob, poll, "new")
    assert style.version_in_service == third


def test_a_vote_whose_winner_cannot_be_promoted_ends_all_the_same(
    style: Style, versions: list[MapperVersion], bob: Viewer, poll: Poll
) -> None:
    Policy.objects.create(style=style, if_better="vote")
    versions[1].file.storage.delete(str(versions[1].file.name))
    answers(bob, poll, "new")
    poll.refresh_from_db()
    assert poll.ended_at
    assert style.version_in_service == versions[0]


def test_the_api_shows_votes_and_of_their_results_when_they_have_ended(style: Style, bob: Viewer, poll: Poll) -> None:
    client = program_of(bob.user)
    answers(bob, poll, "new", 7)
    (open_one,) = client.get(f"/api/styles/{style.slug}/votes/").json()
    assert (open_one["candidate"], open_one["opponent"], open_one["votes"]) == (2, 1, 7)
    assert [open_one[name] for name in ("verdict", "share", "interval", "ended_at")] == [None] * 4
    assert open_one["detail"] == "A blind vote of v2 against v1 is under way: 7 votes so far"
    answers(bob, poll, "new")
    (ended,) = client.get(f"/api/styles/{style.slug}/votes/").json()
    assert (ended["verdict"], ended["share"]) == ("better", 1.0)
    assert 0.5 < ended["interval"][0] < ended["interval"][1] == 1.0
    assert ended["ended_at"]
    client.force_authenticate(User.objects.create_user("outsider"))
    assert client.get(f"/api/styles/{style.slug}/votes/").status_code == 403


@pytest.fixture
def page(browser: Browser, live_server: Any, bob: Viewer) -> Iterator[Page]:
    """A window of bob's."""
    with window_of(bob.user, browser, live_server.url, reduced_motion="reduce") as page:
        yield page


@pytest.mark.django_db(transaction=True)
def test_a_labeller_votes_by_keyboard_until_the_result_is_clear(page: Page, poll: Poll) -> None:
    page.goto("/vote/")
    expect(page.get_by_role("heading", name="Which caption is better?")).to_be_visible()
    for scheme, width in (("light", 1440), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    press(page, "s")
    expect(page.get_by_text("You skipped the last photo.")).to_be_visible()
    press(page, "e")
    expect(page.get_by_text("You found both captions equally good.")).to_be_visible()
    press(page, "u")
    expect(page.get_by_text("You skipped the last photo.")).to_be_visible()
    for number in range(8):
        expect(page.locator(".done")).to_contain_text(f"{number} vote")
        left = page.locator("button[value=left] .text").inner_text()
        press(page, "ArrowLeft" if left.startswith("new") else "ArrowRight")
    expect(page.get_by_role("heading", name="v2 is better than v1")).to_be_visible()
