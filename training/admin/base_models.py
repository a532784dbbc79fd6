"""Base models in the admin: how far others are prepared, every style old against new, and the cut-over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern

from captioner import services as captioner_services
from captioner.admin.base import Empty, OwnPage, WithNewPage, page_status
from captioner.errors import Refused
from captioner.models import BaseModels, Style
from training import services
from training.permissions import SERVE, START

if TYPE_CHECKING:
    StylesField = forms.ModelMultipleChoiceField[Style]
else:
    StylesField = forms.ModelMultipleChoiceField


class PrepareForm(forms.Form):
    """Form: which base models to prepare."""

    encoder = forms.CharField(
        max_length=services.LONGEST_SOURCE,
        help_text="As CLIPCAP_ENCODER names it, such as ViT-L-14/openai, or local-dir:PATH for a folder that the "
        "workers have.",
    )
    language_model = forms.CharField(
        max_length=services.LONGEST_SOURCE,
        help_text="As CLIPCAP_LANGUAGE_MODEL names it, such as gpt2-large, or local-dir:PATH.",
    )


class CutOverForm(forms.Form):
    """Form: what goes out of service with a cut-over, and why it is made."""

    leave_out = StylesField(
        queryset=Style.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="These have no version on the new base models. Those you leave out go out of service.",
    )
    reason = forms.CharField(widget=forms.Textarea(attrs={"rows": 2}), required=False, max_length=1000)

    def __init__(self, *args: Any, missing: list[Style], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if missing:
            field: Any = self.fields["leave_out"]
            field.queryset = Style.objects.filter(pk__in=[style.pk for style in missing])
        else:
            del self.fields["leave_out"]


@admin.register(BaseModels)
class BaseModelsAdmin(OwnPage, WithNewPage):
    """Base models: those in service, and those that are prepared."""

    when_empty = Empty(
        "No base models yet: a worker records its own when it starts; then [prepare others] here.",
        "admin:captioner_basemodels_add",
        "training.add_trainingrun",
    )
    list_display = ("__str__", "state", "person", "created_at")

    @admin.display(description="status")
    def state(self, base: BaseModels) -> str:
        return str(base.status.label).lower()

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Whoever may retrain styles may prepare others."""
        return request.user.has_perm(START)

    def get_urls(self) -> list[URLPattern]:
        """With the live part of a page, its buttons and the cut-over."""
        return [
            self.route("<int:pk>/live/", self.live, "live", "captioner.view_basemodels"),
            self.route("<int:pk>/prepare/", self.prepare, "prepare", START, "POST"),
            self.route("<int:pk>/cancel/", self.cancel, "cancel", START, "POST"),
            self.route("<int:pk>/cut-over/", self.cut_over, "cutover", SERVE, "GET", "POST"),
            *super().get_urls(),
        ]

    def add(self, request: HttpRequest) -> HttpResponse:
        """Name base models to prepare."""
        form, status = PrepareForm(request.POST or None), 200
        if request.method == "POST" and form.is_valid():
            try:
                base = services.prepare_base(**form.cleaned_data, person=request.user)
            except Refused as error:
                field = error.extra.get("field")
                form.add_error(field if field in form.fields else None, error.detail)
                status = page_status(error)
            else:
                self.log_addition(request, base, "prepared")
                return redirect("admin:captioner_basemodels_change", base.pk)
        return self.page(
            request,
            "admin/form_page.html",
            "Prepare base models",
            status,
            form=form,
            text="Every style in service is retrained for them while captions go on with today's. Nothing else changes "
            "before you cut over.",
            button="Prepare",
        )

    def show(self, request: HttpRequest, pk: int) -> HttpResponse:
        """How far they are prepared: every style, its version in service and the one that would take its place."""
        base = self.viewed(request, pk, ROWS)
        return self.page(request, "admin/training/base_models.html", str(base), **_context(base))

    def live(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """How it stands now, to be swapped in."""
        base = self.viewed(request, pk, ROWS)
        return self.page(request, "admin/training/base_models_live.html", "", **_context(base))

    def prepare(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Prepare them, or go on with it."""
        base = services.resume_preparation(base=self.viewed(request, pk), person=request.user)
        return self.done(request, base, "every style is being retrained for these base models")

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Stop preparing them."""
        base = self.viewed(request, pk)
        services.cancel_preparation(base=base, person=request.user)
        return self.done(request, base, "the preparation was canceled; what is done is kept")

    def cut_over(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Put them in service, after asking which styles may go out of service."""
        base = self.viewed(request, pk)
        missing = captioner_services.styles_without(base)
        form, status = CutOverForm(request.POST or None, missing=missing), 200
        if request.method == "POST" and form.is_valid():
            given = form.cleaned_data
            try:
                captioner_services.cut_over(
                    base=base,
                    leave_out=list(given.get("leave_out", ())),
                    person=request.user,
                    reason=given["reason"],
                )
            except Refused as error:
                form.add_error("leave_out" if "leave_out" in form.fields else None, error.detail)
                status = page_status(error)
            else:
                self.log_change(request, base, "put in service")
                messages.success(
                    request, "These base models are in service; their workers write all captions from now on."
                )
                return redirect("admin:captioner_basemodels_change", base.pk)
        return self.page(
            request,
            "admin/form_page.html",
            f"Cut over to {base}",
            status,
            form=form,
            text="Their workers write all captions from now on. To go back, cut over to the previous base models.",
            button="Cut over",
        )


ROWS = BaseModels.objects.select_related("person")


def _context(base: BaseModels) -> dict[str, Any]:
    return {
        "base": base,
        "move": services.progress(base),
        "in_service": BaseModels.in_service(),
        "cut_overs": base.cut_overs.select_related("person"),
    }
