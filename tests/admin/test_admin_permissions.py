"""Who may see and do what in the admin."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from captioner.models import (
    Caption,
    Correction,
    Image,
    Style,
    Viewer,
    Worker,
)
from tests.admin.rows import GROUPS, make_captions, text_of
from tests.people import client_of
from training import services as training_services
from training.models import Example, Policy, TrainingRun

pytestmark = pytest.mark.django_db


def test_each_group_can_do_what_the_one_before_it_can_and_none_can_promote() -> None:
    viewers, labellers, trainers = (
        set(Group.objects.get(name=name).permissions.values_list("codename", flat=True)) for name in GROUPS
    )
    assert all(codename.startswith("view_") for codename in viewers)
    assert labellers - viewers == {"change_caption", "add_example", "delete_example"}
    assert viewers - labellers == {"view_worker"}
    assert viewers | labellers < trainers
    assert not trainers & {"add_promotion", "change_queue", "delete_mapperversion"}


def test_who_labels_sees_nothing_of_workers(members: dict[str, Client]) -> None:
    Worker.objects.create(name="w1@host", queue="captions", memory_mb=4321, seen_at=timezone.now())
    for group, client in members.items():
        shown = text_of(client.get(reverse("admin:index"))) + text_of(client.get(reverse("admin:dashboard")))
        assert ("w1@host" in shown, "Memory" in shown) == (group != "Labellers",) * 2, group
        assert (reverse("admin:captioner_worker_changelist") in shown) == (group != "Labellers"), group


def test_a_group_that_was_changed_stays_so() -> None:
    group = Group.objects.get(name="Viewers")
    group.permissions.clear()
    call_command("migrate", verbosity=0)
    assert not group.permissions.exists()


SEEN = [
    "dashboard",
    "style",
    "captions",
    "caption",
    "image",
    "version",
    "compare",
    "run",
    "run-live",
    "dataset",
    "import",
]
# What is done, and the groups that may; a superuser may all of it.
DONE = {
    "caption-correct": {"Labellers", "Trainers"},
    "caption-retry": {"Labellers", "Trainers"},
    "caption-cancel": {"Labellers", "Trainers"},
    "style-take": {"Labellers", "Trainers"},
    "example-add": {"Labellers", "Trainers"},
    "style-add": {"Trainers"},
    "style-default": {"Trainers"},
    "style-sentences": {"Labellers", "Trainers"},
    "style-train": {"Trainers"},
    "style-retrain": {"Trainers"},
    "style-import": {"Trainers"},
    "style-rewrite": {"Trainers"},
    "versions-photos": {"Trainers"},
    "drafts-cancel": {"Trainers"},
    "import-cancel": {"Trainers"},
    "import-resume": {"Trainers"},
    "run-cancel": {"Trainers"},
    "run-resume": {"Trainers"},
    "version-import": {"Trainers"},
    "version-promote": set(),
    "version-remove": set(),
    "queue-pause": set(),
    "queue-resume": set(),
}


def test_every_group_sees_all_pages(addresses: dict[str, str], members: dict[str, Client]) -> None:
    for group, client in members.items():
        for page in SEEN:
            assert client.get(addresses[page]).status_code == 200, (group, page)


@pytest.mark.parametrize("group", GROUPS)
def test_what_a_group_may_not_do_is_neither_accepted_nor_shown(
    group: str, addresses: dict[str, str], members: dict[str, Client]
) -> None:
    client = members[group]
    shown = "".join(text_of(client.get(addresses[page])) for page in SEEN if page != "image")
    for action, groups in DONE.items():
        if group not in groups:
            assert addresses[action] not in shown, action
            assert client.post(addresses[action]).status_code == 403, action
    for action, groups in DONE.items():
        if group in groups:
            assert client.post(addresses[action]).status_code in (200, 302), action


# What is done with rows chosen from a list, and the groups that may.
CHOSEN = {
    ("captioner_caption", "retry_chosen"): {"Labellers", "Trainers"},
    ("captioner_caption", "cancel_chosen"): {"Labellers", "Trainers"},
    ("captioner_style", "retrain_chosen"): {"Trainers"},
    ("training_example", "delete_chosen"): {"Labellers", "Trainers"},
    ("captioner_correction", "take_chosen"): {"Labellers", "Trainers"},
    ("captioner_correction", "leave_out_chosen"): {"Labellers", "Trainers"},
    ("training_trainingrun", "cancel_chosen"): {"Trainers"},
}


@pytest.mark.parametrize("group", GROUPS)
def test_actions_on_lists_are_neither_offered_nor_done_for_who_may_not(
    group: str, style: Style, run: TrainingRun, images: list[Image], members: dict[str, Client]
) -> None:
    training_services.add_example(style=style, image=images[0], text="a dog", source="stored")
    for caption in make_captions(style, images, 2):
        Correction.objects.create(caption=caption, text="a cat")
    for (model, action), groups in CHOSEN.items():
        address = reverse(f"admin:{model}_changelist")
        offered = f'value="{action}"' in text_of(members[group].get(address))
        assert offered == (group in groups), (model, action)
        if group not in groups:
            chosen = {"action": action, "_selected_action": ["1"], "select_across": "1", "index": "0"}
            before = [
                list(rows.order_by("pk").values())
                for rows in (Caption.objects.all(), Example.objects.all(), Correction.objects.all())
            ]
            runs = list(TrainingRun.objects.values_list("pk", "status"))
            members[group].post(address, chosen)
            after = [
                list(rows.order_by("pk").values())
                for rows in (Caption.objects.all(), Example.objects.all(), Correction.objects.all())
            ]
            assert (after, list(TrainingRun.objects.values_list("pk", "status"))) == (before, runs), (model, action)


def test_a_stranger_and_a_user_without_staff_status_get_nowhere(addresses: dict[str, str], viewer: Viewer) -> None:
    # The site's: it does not say to strangers that it is there, and shows it to its sender, who this viewer is.
    assert Client().get(addresses.pop("image")).status_code == 404
    for client in (Client(), client_of(viewer.user)):
        for name, address in addresses.items():
            for answer in (client.get(address), client.post(address)):
                assert answer.status_code == 302, name
                assert "/admin/login/" in answer.url  # type: ignore[attr-defined]


def test_staff_without_permissions_see_an_empty_dashboard(addresses: dict[str, str]) -> None:
    client = client_of(User.objects.create_user("new", is_staff=True))
    assert "<h2>" not in text_of(client.get(reverse("admin:dashboard")))
    for page in SEEN[1:]:
        assert client.get(addresses[page]).status_code == (404 if page == "image" else 403), page


def test_who_trains_cannot_let_the_gate_promote(style: Style, members: dict[str, Client], boss: Client) -> None:
    given = {
        "name": "Humorous",
        "description": "",
        "policy-TOTAL_FORMS": 1,
        "policy-INITIAL_FORMS": 0,
        "policy-0-style": style.pk,
        "policy-0-metric": "CIDEr",
        "policy-0-margin": "-5",
        "policy-0-if_better": "promote",
        "policy-0-after_corrections": "30",
    }
    address = reverse("admin:captioner_style_change", args=[style.pk])
    assert members["Trainers"].post(address, given).status_code == 302
    policy = Policy.objects.get()
    assert (policy.after_corrections, policy.if_better, policy.margin) == (30, Policy.Action.ASK, 0.0)
    given |= {"policy-INITIAL_FORMS": 1, "policy-0-id": policy.pk, "policy-0-margin": "0.1"}
    assert boss.post(address, given).status_code == 302
    policy.refresh_from_db()
    assert (policy.if_better, policy.margin) == (Policy.Action.PROMOTE, 0.1)
