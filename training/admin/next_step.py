"""The next step of a style, as a button on its page."""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from captioner.models import Style
from training import services
from training.permissions import SERVE, START


@dataclass(frozen=True)
class Button:
    """The next step of a style on its page. Without an address it is for others to do."""

    why: str
    label: str
    address: str
    posts: bool
    kind: str


# Of each kind of step: the page or button, who may, and whether it changes something.
STEPS = {
    "restore": ("captioner_style_restore", SERVE, True),
    "run": ("training_trainingrun_change", "training.view_trainingrun", False),
    "import": ("training_import_change", "training.view_import", False),
    "version": ("captioner_mapperversion_change", "captioner.view_mapperversion", False),
    "examples": ("captioner_style_sentences", "training.add_example", False),
    "take": ("captioner_style_take", "training.add_example", True),
    "train": ("captioner_style_train", START, True),
}


def next_step(request: HttpRequest, style: Style) -> Button:
    """What is to be done next with a style, as a button for those who may."""
    step = services.next_step(style)
    if step.kind == "label":
        return Button(step.why, step.label, f"{reverse('label')}?{urlencode({'style': style.slug})}", False, step.kind)
    name, permission, posts = STEPS[step.kind]
    if step.kind == "train" and style.starting_version is None:  # it can only start from scratch: that is chosen there
        name, posts = "captioner_style_retrain", False
    address = reverse(f"admin:{name}", args=[step.about.pk if step.about else style.pk])
    return Button(step.why, step.label, address if request.user.has_perm(permission) else "", posts, step.kind)
