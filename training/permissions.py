"""Three ready groups, made after `migrate` where they are missing; what an administrator changes in them stays.

- **Viewers** see everything.
- **Labellers** also correct, retry and cancel captions and keep examples; workers and their memory they do not see.
- **Trainers** do and see all of that, and make styles, import, start, cancel and resume runs, and have versions
  compared and captions rewritten.

Putting a version in service is a permission apart, "Can add promotion", which no group has: whoever trains need not be
the one who decides what is in service, so it is given to a person, or to a group of one's own. So it is with pausing a
queue ("Can change queue"), deleting versions, deleting others' captions ("Can delete caption") and taking photos down
("Can delete image"). Superusers may do all of it. To enter the admin at all, a user has to have "staff status".
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group, Permission
from django.db.models import Q

START = "training.add_trainingrun"
SERVE = "captioner.add_promotion"  # whoever may put a version in service may also take a style out of it
SEEN = {
    "captioner": (
        "basemodels",
        "caption",
        "correction",
        "draftrequest",
        "image",
        "mapperversion",
        "promotion",
        "style",
        "worker",
        "webhookdelivery",
    ),
    "training": ("example", "import", "rejectedrow", "trainingrun", "runevent", "epochreport", "policy"),
}
VIEWERS = [f"{app}.view_{model}" for app, models in SEEN.items() for model in models]
WORKERS = "captioner.view_worker"
LABELLERS = [
    *(permission for permission in VIEWERS if permission != WORKERS),
    "captioner.change_caption",
    "training.add_example",
    "training.delete_example",
]
TRAINERS = [
    *LABELLERS,
    WORKERS,
    "captioner.add_style",
    "captioner.change_style",
    "captioner.add_mapperversion",
    "captioner.add_draftrequest",
    "captioner.change_draftrequest",
    "training.add_import",
    "training.change_import",
    "training.add_policy",
    "training.change_policy",
    "training.add_trainingrun",
    "training.change_trainingrun",
]
GROUPS = {"Viewers": VIEWERS, "Labellers": LABELLERS, "Trainers": TRAINERS}


def make_groups(using: str, **_: Any) -> None:
    """Make the groups that are not there."""
    there = set(Group.objects.using(using).values_list("name", flat=True))
    for name, permissions in GROUPS.items():
        if name in there:
            continue
        wanted = Q()
        for permission in permissions:
            app, codename = permission.split(".")
            wanted |= Q(content_type__app_label=app, codename=codename)
        found = list(Permission.objects.using(using).filter(wanted))
        group = Group.objects.using(using).create(name=name)
        held = Group.permissions.through  # as rows: nobody has changed anything, which the audit log would tell
        held.objects.using(using).bulk_create(held(group=group, permission=permission) for permission in found)
