"""The admin's pages of styles, their examples and their training runs; see captioner/admin.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.forms import Form, ModelForm
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern
from django.utils.safestring import SafeString

from captioner import audit, dashboard
from captioner import services as captioner_services
from captioner.admin import as_int
from captioner.admin_parts import (
    COUNTED,
    MOST_AT_ONCE,
    BigTable,
    Page,
    ReadOnly,
    counted,
    each,
    sentence,
    so_many,
    thumbnail,
)
from captioner.errors import Refused
from captioner.jobs import Status
from captioner.models import Caption, Correction, MapperVersion, Promotion, Style
from captioner.plots import bars, loss_curves, score_bars
from training import services
from training.dashboard import standing
from training.datasets.importer import refused_csv
from training.datasets.statistics import statistics
from training.forms import ImportForm, RetrainForm
from training.models import Checkpoint, Example, Import, Policy, TrainingRun

VERSIONS_SHOWN = 20
REFUSED_SHOWN = 50
PART = 1_000  # examples deleted in one transaction
START = "training.add_trainingrun"


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


@admin.register(Style)
class StyleAdmin(Page):
    """Styles: what they are, what serves, what they learn from."""

    list_display = ("name", "slug", "is_default", "in_service", "cider", "created_at")
    fields = ("name", "slug", "description", "is_default")
    inlines = (PolicyInline,)
    actions = ("retrain_chosen",)
    change_form_template = "admin/training/style.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Style]:
        """With number and metrics of the version in service."""
        newest = Promotion.objects.filter(style=OuterRef("pk")).order_by("-pk")
        styles: QuerySet[Style] = super().get_queryset(request)
        return styles.annotate(
            serving_number=Subquery(newest.values("version__number")[:1]),
            serving_metrics=Subquery(newest.values("version__metrics")[:1]),
        )

    @admin.display(description="in service")
    def in_service(self, style: Any) -> str:
        return f"v{style.serving_number}" if style.serving_number else "nothing yet"

    @admin.display(description="CIDEr")
    def cider(self, style: Any) -> str:
        score = dashboard.score(MapperVersion(metrics=style.serving_metrics or {}))
        return "" if score is None else f"{score:.3f}"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The slug is part of the API's addresses; the default is moved by its own button, from one to another."""
        return ("is_default", "slug") if obj else ("is_default",)

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Sequence[str]]:
        return {} if obj else {"slug": ("name",)}

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        """The policy, once there is a style for it."""
        return self.inlines if obj else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A style that has a history stays."""
        if obj and (obj.versions.exists() or obj.examples.exists() or obj.captions.exists()):
            return False
        return obj is not None and super().has_delete_permission(request, obj)

    def has_train_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(START)

    @admin.action(description="Retrain with the usual options", permissions=["train"])
    def retrain_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.start_run(style=s, person=request.user), "runs are queued")

    def get_urls(self) -> list[URLPattern]:
        """With a style's forms and its dataset."""
        posts = ("GET", "POST")
        return [
            self.route("<int:pk>/default/", self.make_default, "default", "captioner.change_style", "POST"),
            self.route("<int:pk>/rewrite/", self.rewrite, "rewrite", "captioner.add_draftrequest", *posts),
            self.route("<int:pk>/retrain/", self.retrain, "retrain", START, *posts),
            self.route("<int:pk>/import/", self.import_examples, "import", "training.add_import", *posts),
            self.route("<int:pk>/take/", self.take_corrections, "take", "training.add_example", "POST"),
            self.route("<int:pk>/dataset/", self.dataset, "dataset", "training.view_example"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The form, and below it what serves, the versions, the runs and the history."""
        style = self.viewed(request, as_int(object_id))
        active = style.active_version
        versions = style.versions.select_related("style", "created_by").order_by("-number")[:VERSIONS_SHOWN]
        context = {
            "style": style,
            "active": active,
            "active_score": dashboard.score(active),
            "versions": [(version, dashboard.score(version), version == active) for version in versions],
            "promotions": style.promotions.select_related("version__style", "person")[:VERSIONS_SHOWN],
            "runs": _light(style.runs).select_related("style", "person", "version__style")[:10],
            "imports": style.imports.select_related("person")[:5],
            "open_corrections": services.open_corrections(style).count(),
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def make_default(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Use the style wherever a request names none."""
        style = self.viewed(request, pk)
        captioner_services.set_default_style(style)
        return self.done(request, style, f"{style} is used where a request names no style")

    def rewrite(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Have the version in service write the style's captions anew, after asking."""
        style = self.viewed(request, pk)
        if not request.user.has_perm("captioner.change_caption"):
            raise PermissionDenied
        if request.method == "POST":
            drafts = captioner_services.rewrite_captions(style=style, person=request.user)
            self.log_change(request, style, "had its captions written anew")
            return redirect("admin:captioner_draftrequest_change", drafts.pk)
        count = so_many(counted(captioner_services.to_rewrite(style, style.active_version)))
        return self.page(
            request,
            "admin/form_page.html",
            f"Write the captions of {style} anew?",
            form=Form(),
            button="Write them anew",
            text=f"{count} captions were written by another version than the one in service, {style.active_version}. "
            "Each keeps its text until the new one is there, and people's corrections stay. Captions that somebody "
            "waits for come first.",
            up=style,
        )

    def retrain(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Choose the options of a run, and start it."""
        style = self.viewed(request, pk)
        initial = {} if style.active_version else {"start": "scratch"}
        form = RetrainForm(request.POST or None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                run = services.start_run(style=style, options=form.cleaned_data, person=request.user)
            except Refused as error:
                form.refuse(error)
            else:
                self.log_change(request, style, f"started {run}")
                return redirect("admin:training_trainingrun_change", run.pk)
        text = f"{style.examples.count():,} examples are in the dataset."
        return self.page(
            request, "admin/form_page.html", f"Retrain {style}", form=form, button="Start the run", text=text, up=style
        )

    def import_examples(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Choose a file of examples, and have it imported."""
        style = self.viewed(request, pk)
        form = ImportForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            file = form.cleaned_data["file"]
            try:
                batch = services.start_import(style=style, file=file, name=file.name, person=request.user)
            except Refused as error:
                form.add_error("file", error.detail)
            else:
                self.log_change(request, style, f"imports {batch.name}")
                return redirect("admin:training_import_change", batch.pk)
        title = f"Import examples of {style}"
        return self.page(request, "admin/form_page.html", title, form=form, button="Import", up=style)

    def take_corrections(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Make examples of all corrections that are none yet."""
        style = self.viewed(request, pk)
        count = services.take_corrections(services.open_corrections(style))
        return self.done(request, style, f"{count:,} corrections are new in the dataset of {style}")

    def dataset(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """What a style learns from, in numbers and samples."""
        style = self.viewed(request, pk)
        found = statistics(style)
        lengths = dict(found["words"]["histogram"])
        words = range(min(lengths, default=0), max(lengths, default=0) + 1)
        return self.page(
            request,
            "admin/training/dataset.html",
            f"Dataset of {style}",
            style=style,
            up=style,
            found=found,
            lengths=bars([str(n) for n in words], {"captions": [lengths.get(n, 0) for n in words]}, "Words a caption"),
        )


class ExampleForm(ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    """A stored photo with a caption, as examples keep it."""

    def clean_text(self) -> str:
        try:
            return services.caption_text(self.cleaned_data["text"])
        except Refused as error:
            raise ValidationError(sentence(error)) from error


@admin.register(Example)
class ExampleAdmin(BigTable):
    """What styles learn from. Files come in through a style's page; here a stored photo can be added by hand."""

    list_display = ("picture", "text", "style", "source", "held_out", "created_at")
    list_display_links = ("text",)
    list_filter = ("style", "source", "held_out")
    list_select_related = ("image", "style")
    search_fields = ("text",)
    form = ExampleForm
    fields = ("style", "image", "text")
    raw_id_fields = ("image",)
    actions = ("delete_chosen",)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Without Django's own way of deleting, which loads and shows all that are chosen, however many."""
        found: dict[str, Any] = super().get_actions(request)
        found.pop("delete_selected", None)
        return found

    @admin.action(description="Delete", permissions=["delete"])
    def delete_chosen(self, request: HttpRequest, queryset: QuerySet[Example]) -> HttpResponseBase | None:
        """Delete examples, after asking."""
        if newest := as_int(request.POST.get("newest", "0")):  # what has come since the question was not meant
            queryset = queryset.filter(pk__lte=newest)
        chosen = list(queryset.order_by().values_list("pk", flat=True)[: COUNTED + 1])
        if len(chosen) > COUNTED:
            messages.error(request, f"More than {COUNTED:,} rows are chosen; narrow the list first.")
            return None
        if "sure" not in request.POST:
            return self.page(
                request,
                "admin/form_page.html",
                f"Delete {len(chosen):,} examples?",
                form=Form(),
                kept=[
                    ("newest", max(chosen, default=0)),
                    *((name, value) for name, values in request.POST.lists() for value in values),
                ],
                button="Delete them",
                text="They are deleted for good; their photos stay. Versions that learned from them stay as they are.",
            )
        for start in range(0, len(chosen), PART):
            part = Example.objects.filter(pk__in=chosen[start : start + PART])
            with transaction.atomic():
                self.log_deletions(request, part)
                part.delete()
        messages.success(request, f"{len(chosen):,} examples are deleted.")
        return None

    @admin.display(description="")
    def picture(self, example: Example) -> SafeString:
        return thumbnail(example.image)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """An example is replaced, never rewritten: runs name what they learned from by its number."""
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        """Add a photo that is stored already."""
        services.add_example(style=obj.style, image=obj.image, text=obj.text, source=Example.Source.STORED)
        obj.pk = Example.objects.get(style=obj.style, image=obj.image, text=obj.text).pk


class OfStyle(admin.SimpleListFilter):
    """The style of what was corrected. Asked of each correction: a style may have a million captions without one."""

    title = parameter_name = "style"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(Style.objects.values_list("slug", "name"))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        return queryset.filter(Exists(Caption.objects.filter(pk=OuterRef("caption"), style__slug=self.value())))


class Taken(admin.SimpleListFilter):
    """Whether a correction is an example."""

    title = "in the dataset"
    parameter_name = "taken"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", "not yet"), ("yes", "yes"), ("never", "left out")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = {
            "no": Q(taken=False, considered_at=None),
            "yes": Q(taken=True),
            "never": Q(taken=False, considered_at__isnull=False),
        }
        return queryset.filter(chosen.get(self.value() or "", Q()))


@admin.register(Correction)
class CorrectionAdmin(BigTable, ReadOnly):
    """What people wrote in place of captions, to be taken into datasets."""

    list_display = ("picture", "text", "instead_of", "style", "author", "taken", "created_at")
    list_display_links = ("text",)
    list_filter = (Taken, OfStyle)
    list_select_related = ("caption__image", "caption__style", "author")
    search_fields = ("text",)
    actions = ("take_chosen", "leave_out_chosen")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Correction]:
        """With `taken`: whether it is an example."""
        corrections: QuerySet[Correction] = super().get_queryset(request)
        same = Example.objects.filter(
            style=OuterRef("caption__style"), image=OuterRef("caption__image"), text=OuterRef("text")
        )
        return corrections.annotate(taken=Exists(same))

    @admin.display(description="")
    def picture(self, correction: Correction) -> SafeString:
        return thumbnail(correction.caption.image)

    @admin.display(description="instead of")
    def instead_of(self, correction: Correction) -> str:
        return correction.caption.text

    @admin.display(description="style")
    def style(self, correction: Correction) -> str:
        return str(correction.caption.style)

    @admin.display(description="in the dataset", boolean=True)
    def taken(self, correction: Any) -> bool:
        return bool(correction.taken)

    def has_take_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training.add_example")

    @admin.action(description="Take into the dataset of their style", permissions=["take"])
    def take_chosen(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        chosen = list(queryset.order_by().values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        if len(chosen) > MOST_AT_ONCE:
            messages.error(request, f"More than {MOST_AT_ONCE:,} rows are chosen; narrow the list first.")
            return
        corrections = Correction.objects.filter(pk__in=chosen).select_related("caption__image", "caption__style")
        new = services.take_corrections(corrections)
        messages.success(request, f"{new:,} of {len(chosen):,} corrections are new in the dataset of their style.")

    @admin.action(description="Leave out for good", permissions=["take"])
    def leave_out_chosen(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        each(request, queryset, lambda correction: services.leave_out([correction]), "corrections are left out")


@admin.register(Import)
class ImportAdmin(ReadOnly):
    """Imports of examples, live."""

    list_display = ("name", "style", "status", "rows", "accepted", "duplicates", "person", "created_at")
    list_filter = ("status", "style")
    list_select_related = ("style", "person")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of an import's page and its refused rows."""
        view = "training.view_import"
        return [
            self.route("<int:pk>/live/", self.live, "live", view),
            self.route("<int:pk>/refused.csv", self.refused, "refused", view),
            self.route("<int:pk>/cancel/", self.cancel, "cancel", "training.change_import", "POST"),
            self.route("<int:pk>/resume/", self.resume, "resume", "training.change_import", "POST"),
            *super().get_urls(),
        ]

    def resume(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Queue a stopped import again, to go on behind its last row."""
        return self.done(request, services.resume_import(self.viewed(request, pk)), "the import is queued again")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """How far an import is, and what of it was refused."""
        batch = self.viewed(request, as_int(object_id))
        return self.page(request, "admin/training/import.html", str(batch), up=batch.style, **self._standing(batch))

    def live(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """How far it is now, to be swapped in."""
        services.look_after()
        return self.page(request, "admin/training/import_live.html", "", **self._standing(self.viewed(request, pk)))

    def refused(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """The rows that were refused, as CSV."""
        batch = self.viewed(request, pk)
        audit.record(audit.Action.EXPORTED, f"refused rows of {batch}")
        response = StreamingHttpResponse(refused_csv(batch), content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="refused-{batch.pk}.csv"'
        return response

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Cancel an unfinished import; what came in stays."""
        batch = self.viewed(request, pk)
        services.cancel_import(batch)
        return self.done(request, batch, "the import is canceled; what came in stays")

    def _standing(self, batch: Import) -> dict[str, Any]:
        stopped = batch.status in (Status.FAILED, Status.CANCELED)
        return {
            "batch": batch,
            "stopped": stopped,
            "there": stopped and services.is_there(batch),
            "refused_count": batch.refused.count(),
            "refused_rows": batch.refused.all()[:REFUSED_SHOWN],
        }


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnly):
    """Retrainings, live."""

    list_display = ("__str__", "style", "status", "verdict", "version", "examples", "person", "created_at")
    list_filter = ("status", "verdict", "style")
    list_select_related = ("style", "person", "version__style")
    actions = ("cancel_chosen",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingRun]:
        return _light(super().get_queryset(request))

    def has_steer_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training.change_trainingrun")

    @admin.action(description="Cancel", permissions=["steer"])
    def cancel_chosen(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        each(request, queryset, services.cancel_run, "runs are canceled")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of a run's page and its buttons."""
        change = "training.change_trainingrun"
        return [
            self.route("<int:pk>/live/", self.live, "live", "training.view_trainingrun"),
            self.route("<int:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            self.route("<int:pk>/resume/", self.resume, "resume", change, "POST"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A run from its queueing to its verdict."""
        run = self.viewed(request, as_int(object_id), _RUNS)
        title = f"Run {run.pk} of {run.style}"
        return self.page(request, "admin/training/run.html", title, up=run.style, **_run_context(run))

    def live(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """How it stands now, to be swapped in."""
        services.look_after()
        return self.page(request, "admin/training/run_live.html", "", **_run_context(self.viewed(request, pk, _RUNS)))

    def cancel(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Cancel an unfinished run."""
        return self.done(request, services.cancel_run(self.viewed(request, pk)), "the run is canceled")

    def resume(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Queue a stopped run again, to go on from its last checkpoint."""
        return self.done(request, services.resume_run(self.viewed(request, pk)), "the run is queued again")


_RUNS = TrainingRun.objects.select_related("style", "person", "version__style", "base__style")


def _light(runs: QuerySet[TrainingRun]) -> QuerySet[TrainingRun]:
    """Runs for a list, without what only their pages show."""
    return runs.defer("curve", "comparison", "metrics", "progress")


def _run_context(run: TrainingRun) -> dict[str, Any]:
    checkpoints = list(run.checkpoints.all())
    metrics = run.metrics
    scores = {name: metrics[name]["scores"] for name in ("candidate", "active") if name in metrics}
    active = metrics.get("active_version", "in service")
    names = [name for name in scores.get("candidate", {}) if not name.startswith("Bleu") or name == "Bleu_4"]
    labels = {"candidate": "candidate", "active": active}
    drawn = {n: {labels[who]: values[n] for who, values in scores.items() if n in values} for n in names}
    return {
        "run": run,
        "standing": standing(run),
        "steerable": run.status in (Status.FAILED, Status.CANCELED),
        "curves": loss_curves(run.curve, [(c.step, c.training_loss, c.validation_loss) for c in checkpoints]),
        "checkpoints": checkpoints,
        "samples": _samples(checkpoints),
        "events": run.events.order_by("-pk")[:30],
        "scores": [(name, scores["candidate"][name], scores.get("active", {}).get(name)) for name in names],
        "bars": score_bars(drawn, "Scores on the held-out images") if drawn else "",
        "active_name": active,
        "options": {name: value for name, value in run.options.items() if run.base_id is None or name not in _NEW_ONLY},
        "serving": run.version is not None and run.style.active_version == run.version,
    }


_NEW_ONLY = ("mapper", "prefix_length", "layers")  # options that say nothing of a run from an earlier version


def _samples(checkpoints: list[Checkpoint]) -> list[dict[str, Any]]:
    """For each of the held-out photos, what was written about it from checkpoint to checkpoint, repetitions merged."""
    photos: dict[str, dict[str, Any]] = {}
    for checkpoint in checkpoints:
        for sample in checkpoint.samples:
            photo = photos.setdefault(sample["image"], {**sample, "texts": []})
            texts = photo["texts"]
            if texts and texts[-1]["text"] == sample["text"]:
                texts[-1]["last"] = checkpoint.epoch
            else:
                texts.append({"first": checkpoint.epoch, "last": checkpoint.epoch, "text": sample["text"]})
    return list(photos.values())
