"""Styles in the admin, with what they learn from: captioner's pages of a style, and those of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from captioner.admin.styles import StyleAdmin
from captioner.models import Style
from training import services
from training.admin.datasets import DatasetPages
from training.admin.next_step import next_step
from training.admin.retraining import RetrainingPages
from training.admin.runs import light
from training.admin.sentences import SentencePages
from training.models import Policy

if TYPE_CHECKING:
    StackedInline = admin.StackedInline[Any, Any]
else:
    StackedInline = admin.StackedInline


class PolicyInline(StackedInline):
    """When a style is retrained by itself, and what becomes of the result."""

    model = Policy
    can_delete = False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The gate may put versions in service: it is set by those who may."""
        gate = ("metric", "margin", "if_better")
        return () if request.user.has_perm("captioner.add_promotion") else gate


class TrainedStyleAdmin(SentencePages, RetrainingPages, DatasetPages, StyleAdmin):
    """Styles: what they are, what is in service, what they learn from."""

    when_empty = StyleAdmin.when_empty._replace(
        sentence="No styles yet: [make the first one] of a few example sentences."
    )
    inlines = (PolicyInline,)
    actions = ("retrain_chosen", *StyleAdmin.actions)
    change_form_template = "admin/training/style.html"

    def shown(self, request: HttpRequest, style: Style) -> dict[str, Any]:
        """With the next step, the dataset, runs and imports."""
        return {
            **super().shown(request, style),
            "runs": light(style.runs.all()).select_related("style", "person", "version__style")[:10],
            "imports": style.imports.select_related("person")[:5],
            "open_corrections": services.open_corrections(style).count(),
            "examples": style.examples.count(),
            "photos": services.count_photos(style.examples.all()),
            "step": next_step(request, style),
        }


admin.site.unregister(Style)
admin.site.register(Style, TrainedStyleAdmin)
