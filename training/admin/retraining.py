"""Starting training runs of a style in the admin."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern

from captioner.admin.base import AdminWithPages, each
from captioner.errors import Refused
from captioner.models import Style
from training import services
from training.forms import RetrainForm
from training.permissions import START


class RetrainingPages(AdminWithPages):
    """Retraining of one style, with options or without, and of several."""

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("<int:pk>/train/", self.train, "train", START, "POST"),
            self.route("<int:pk>/retrain/", self.retrain, "retrain", START, "GET", "POST"),
            *super().get_urls(),
        ]

    def has_train_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(START)

    @admin.action(description="Retrain with default options", permissions=["train"])
    def retrain_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.start_run(style=s, person=request.user), "runs were queued")

    def train(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Start a run with default options."""
        style = self.viewed(request, pk)
        run = services.start_run(style=style, person=request.user)
        self.log_change(request, style, f"started {run}")
        return redirect("admin:training_trainingrun_change", run.pk)

    def retrain(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Choose the options of a run, and start it."""
        style = self.viewed(request, pk)
        initial = {} if style.starting_version else {"start": "scratch"}
        form = RetrainForm(request.POST or None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                run = services.start_run(style=style, options=form.cleaned_data, person=request.user)
            except Refused as error:
                form.refuse(error)
            else:
                self.log_change(request, style, f"started {run}")
                return redirect("admin:training_trainingrun_change", run.pk)
        text = f"{services.prospect(style).detail}."
        return self.page(
            request, "admin/form_page.html", f"Retrain {style}", form=form, button="Start the run", text=text, up=style
        )
