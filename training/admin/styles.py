"""A style in the admin, from its examples to its policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern, reverse
from django.utils.http import urlencode

from captioner import services as captioner_services
from captioner import uploads
from captioner.admin import dashboard
from captioner.admin.base import AdminWithPages, Empty, counted, each, page_status, sentence, so_many
from captioner.admin.parameters import as_int, as_uuid
from captioner.admin.plots import bars
from captioner.errors import Refused
from captioner.models import Image, MapperVersion, Style, Viewer
from captioner.reports import VersionReport
from training import services
from training.admin.runs import light
from training.datasets.statistics import statistics
from training.forms import ImportForm, NewStyleForm, RetrainForm, SentencesForm
from training.models import Policy

VERSIONS_SHOWN = 20
# Of each format, a file to download from static/samples.
SAMPLES = {
    "captions.csv": "CSV with a header (TSV too)",
    "captions.jsonl": "JSON Lines",
    "coco.json": "COCO",
    "karpathy.json": "Karpathy's JSON, with splits",
    "train_caption.json": "The ClipCap authors' train_caption.json",
    "flickr8k.token.txt": "Flickr8k's tokens",
    "flickr30k_results.csv": "Flickr30k's results.csv",
    "sidecars.zip": "A .txt next to each photo, zipped with them",
}
OFFERED, MOST_OFFERED = 12, 60  # photos to write about
START = "training.add_trainingrun"
SERVE = "captioner.add_promotion"


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
class StyleAdmin(AdminWithPages):
    """Styles: what they are, what is in service, what they learn from."""

    when_empty = Empty(
        "No styles yet: ",
        "make the first one",
        " of a few example sentences.",
        "admin:captioner_style_add",
        "captioner.add_style",
    )
    list_display = ("name", "slug", "status", "is_default", "in_service", "cider", "created_at")
    list_filter = ("status",)
    fields = ("name", "slug", "description", "starts_from", "is_default")
    inlines = (PolicyInline,)
    actions = ("retrain_chosen", "withdraw_chosen", "restore_chosen", "archive_chosen")
    change_form_template = "admin/training/style.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Style]:
        """With number and metrics of the version in service."""
        in_service = MapperVersion.objects.in_service().filter(style=OuterRef("pk"))
        styles: QuerySet[Style] = super().get_queryset(request)
        return styles.annotate(
            in_service_number=Subquery(in_service.values("number")),
            in_service_metrics=Subquery(in_service.values("metrics")),
        )

    @admin.display(description="in service")
    def in_service(self, style: Any) -> str:
        return f"v{style.in_service_number}" if style.in_service_number else "nothing yet"

    @admin.display(description="CIDEr")
    def cider(self, style: Any) -> str:
        score = VersionReport.read(style.in_service_metrics or {}).score("CIDEr")
        return "" if score is None else f"{score:.3f}"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The slug is part of the API's addresses; the default is moved by its own button, from one to another."""
        return ("is_default", "slug")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A style has a page of its own for that, which asks whether anything needs it."""
        return False

    def has_train_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(START)

    def has_serve_permission(self, request: HttpRequest) -> bool:
        """Whoever may put a version in service may take a style out of it."""
        return request.user.has_perm(SERVE)

    @admin.action(description="Retrain with default options", permissions=["train"])
    def retrain_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: services.start_run(style=s, person=request.user), "runs were queued")

    @admin.action(description="Withdraw: no new requests", permissions=["serve"])
    def withdraw_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: captioner_services.withdraw_style(s, request.user), "styles were withdrawn")

    @admin.action(description="Bring back", permissions=["serve"])
    def restore_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: captioner_services.restore_style(s, request.user), "styles are available")

    @admin.action(description="Archive", permissions=["serve"])
    def archive_chosen(self, request: HttpRequest, queryset: QuerySet[Style]) -> None:
        each(request, queryset, lambda s: captioner_services.archive_style(s, request.user), "styles were archived")

    def get_urls(self) -> list[URLPattern]:
        """With a style's forms and its dataset."""
        posts = ("GET", "POST")
        return [
            self.route("<int:pk>/default/", self.make_default, "default", "captioner.change_style", "POST"),
            self.route("<int:pk>/withdraw/", self.withdraw, "withdraw", SERVE, "POST"),
            self.route("<int:pk>/restore/", self.restore, "restore", SERVE, "POST"),
            self.route("<int:pk>/archive/", self.archive, "archive", SERVE, "POST"),
            self.route("<int:pk>/remove/", self.remove, "remove", "captioner.delete_style", *posts),
            self.route("<int:pk>/rewrite/", self.rewrite, "rewrite", "captioner.add_draftrequest", *posts),
            self.route("<int:pk>/train/", self.train, "train", START, "POST"),
            self.route("<int:pk>/sentences/", self.sentences, "sentences", "training.add_example", *posts),
            self.route("<int:pk>/retrain/", self.retrain, "retrain", START, *posts),
            self.route("<int:pk>/import/", self.import_examples, "import", "training.add_import", *posts),
            self.route("<int:pk>/take/", self.take_corrections, "take", "training.add_example", "POST"),
            self.route("<int:pk>/dataset/", self.dataset, "dataset", "training.view_example"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What matters and the next step; then settings, versions, runs and the history."""
        style = self.viewed(request, as_int(object_id))
        version_in_service = style.version_in_service
        versions = style.versions.select_related("style", "created_by").order_by("-number")[:VERSIONS_SHOWN]
        context = {
            "title": style.name,
            "subtitle": None,
            "style": style,
            "version_in_service": version_in_service,
            "score_in_service": dashboard.score(version_in_service),
            "versions": [(version, dashboard.score(version), version == version_in_service) for version in versions],
            "promotions": style.promotions.select_related("version__style", "person")[:VERSIONS_SHOWN],
            "runs": light(style.runs).select_related("style", "person", "version__style")[:10],
            "imports": style.imports.select_related("person")[:5],
            "moves": [
                (name, reverse(f"admin:captioner_style_{name}", args=[style.pk]))
                for name in ("withdraw", "restore", "archive")
            ],
            "open_corrections": services.open_corrections(style).count(),
            "examples": style.examples.count(),
            "photos": services.count_photos(style.examples.all()),
            "score": captioner_services.verdict_of(version_in_service) if version_in_service else "",
            "since": style.promotions.on().first(),
            "step": _step(request, style),
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A style from nothing: its name, where it starts from, and its first examples."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        photos, problem = _chosen_photos(request)
        form = NewStyleForm(_sent(request), initial=request.POST.dict() or None, photos=photos)
        if form.is_bound and form.is_valid():
            fields = {name: form.cleaned_data[name] for name in ("name", "slug", "description", "starts_from")}
            sentences = form.sentences if request.user.has_perm("training.add_example") else []
            try:
                style = services.new_style(**fields, sentences=sentences, person=request.user)
            except Refused as error:
                name = error.extra.get("field")
                form.add_error(name if name in form.fields else None, sentence(error))
            else:
                self.log_addition(request, style, "created")
                messages.success(request, f"{style} was created.")
                if "file" in request.FILES and request.user.has_perm("training.add_import"):
                    _import(request, style, request.FILES["file"])
                return redirect("admin:captioner_style_change", style.pk)
        return self.page(
            request,
            "admin/training/new_style.html",
            "New style",
            form=form,
            problem=problem,
            fewest=services.FEWEST_SENTENCES,
            most=services.MOST_SENTENCES,
            button="Create the style",
            writes=request.user.has_perm("training.add_example"),
            imports=request.user.has_perm("training.add_import"),
        )

    def sentences(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Write what the captions of some photos should be."""
        style = self.viewed(request, pk)
        photos, problem = _chosen_photos(request)
        form = SentencesForm(_sent(request), initial=request.POST.dict() or None, photos=photos)
        if form.is_bound and form.is_valid():
            try:
                count = services.add_sentences(style, form.sentences)
            except Refused as error:
                form.add_error(None, sentence(error))
            else:
                self.log_change(request, style, f"got {count} sentences")
                messages.success(request, f"{count:,} example{'s were' if count != 1 else ' was'} added to {style}.")
                return redirect("admin:captioner_style_change", style.pk)
        return self.page(
            request,
            "admin/training/sentences.html",
            f"Write examples of {style}",
            form=form,
            problem=problem,
            button="Add to the dataset",
            up=style,
            writes=True,
        )

    def train(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Start a run with default options."""
        style = self.viewed(request, pk)
        run = services.start_run(style=style, person=request.user)
        self.log_change(request, style, f"started {run}")
        return redirect("admin:training_trainingrun_change", run.pk)

    def make_default(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Use the style wherever a request names none."""
        style = self.viewed(request, pk)
        captioner_services.set_default_style(style)
        return self.done(request, style, f"{style} is now the default style")

    def withdraw(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Take a style out of service."""
        style = self.viewed(request, pk)
        captioner_services.withdraw_style(style, request.user)
        return self.done(request, style, f"{style} was withdrawn; captions requested before are still generated")

    def restore(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Make a style available again."""
        style = self.viewed(request, pk)
        captioner_services.restore_style(style, request.user)
        return self.done(request, style, f"{style} is available")

    def archive(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Put a withdrawn style away."""
        style = self.viewed(request, pk)
        captioner_services.archive_style(style, request.user)
        return self.done(request, style, f"{style} was archived")

    def remove(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Delete a style that nothing needs, after asking."""
        style = self.viewed(request, pk)
        if request.method == "POST":
            captioner_services.delete_style(style, request.user)
            messages.success(request, f"{style} was deleted.")
            return redirect("admin:captioner_style_changelist")
        return self.page(
            request,
            "admin/form_page.html",
            f"Delete {style}?",
            form=Form(),
            button="Delete it",
            text="This cannot be undone. A style that has captions, versions, examples or other history cannot be "
            "deleted; archive it.",
            up=style,
        )

    def rewrite(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Have the version in service regenerate the style's captions, after asking."""
        style = self.viewed(request, pk)
        if not request.user.has_perm("captioner.change_caption"):
            raise PermissionDenied
        if request.method == "POST":
            drafts = captioner_services.rewrite_captions(style=style, person=request.user)
            self.log_change(request, style, "had its captions regenerated")
            return redirect("admin:captioner_draftrequest_change", drafts.pk)
        count = so_many(counted(captioner_services.to_rewrite(style, now := style.version_in_service)))
        return self.page(
            request,
            "admin/form_page.html",
            f"Regenerate the captions of {style}?",
            form=Form(),
            button="Regenerate captions",
            text=f"{count} captions were written by another version than {now}, which is in service. Each keeps its "
            "text until the new one is ready, and corrections stay. Captions that someone is waiting for go first.",
            up=style,
        )

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

    def import_examples(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Choose a file of examples, and have it imported."""
        style = self.viewed(request, pk)
        form, status, preview = ImportForm(request.POST or None, request.FILES or None), 200, None
        if request.method == "POST" and form.is_valid():
            file = form.cleaned_data["file"]
            try:
                if "check" in request.POST:
                    preview = services.preview_import(file, file.name, form.keys)
                else:
                    given = {"name": file.name, "keys": form.keys, "person": request.user}
                    batch = services.start_import(style=style, file=file, **given)
                    self.log_change(request, style, f"imports {batch.name}")
                    return redirect("admin:training_import_change", batch.pk)
            except Refused as error:
                form.add_error("file", error.detail)
                status = page_status(error)
        return self.page(
            request,
            "admin/training/import_examples.html",
            f"Import examples of {style}",
            status,
            form=form,
            preview=preview,
            samples=SAMPLES,
            up=style,
        )

    def take_corrections(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Make examples of all corrections that are none yet."""
        style = self.viewed(request, pk)
        count = services.take_corrections(services.open_corrections(style))
        return self.done(request, style, f"{count:,} corrections were added to the dataset of {style}")

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
            lengths=bars(
                [str(n) for n in words], {"captions": [lengths.get(n, 0) for n in words]}, "Words per caption"
            ),
        )


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


def _step(request: HttpRequest, style: Style) -> Button:
    """What is to be done next with a style, as a button for those who may."""
    step = services.next_step(style)
    if step.kind == "label":
        return Button(step.why, step.label, f"{reverse('label')}?{urlencode({'style': style.slug})}", False, step.kind)
    name, permission, posts = STEPS[step.kind]
    if step.kind == "train" and style.starting_version is None:  # it can only start from scratch: that is chosen there
        name, posts = "captioner_style_retrain", False
    address = reverse(f"admin:{name}", args=[step.about.pk if step.about else style.pk])
    return Button(step.why, step.label, address if request.user.has_perm(permission) else "", posts, step.kind)


def _sent(request: HttpRequest) -> Any:
    """What was sent to be saved; None where photos were only added to the form."""
    return request.POST if request.method == "POST" and "add" not in request.POST else None


def _chosen_photos(request: HttpRequest) -> tuple[list[Image], str]:
    """The photos that a form offers, and why a file just sent is none of them: those sent, those that it offered
    before, or one's own newest."""
    if not request.user.has_perm("captioner.view_image"):
        return [], ""
    kept = list(Image.objects.filter(pk__in=[as_uuid(text) for text in request.POST.getlist("photo")][:MOST_OFFERED]))
    own = Viewer(request.user).sender
    if request.method != "POST":
        newest = list(Image.objects.filter(sender=own)[:OFFERED])
        return newest or list(Image.objects.all()[:OFFERED]), ""
    sent, problem = [], ""
    for file in request.FILES.getlist("upload")[: services.MOST_SENTENCES]:
        try:
            sent.append(uploads.store(file.read(settings.MAX_UPLOAD_BYTES + 1), own))
        except Refused as error:
            problem = f"{captioner_services.tidy_name(file.name or '')}: {error.detail}"
    return list(dict.fromkeys([*sent, *kept]))[:MOST_OFFERED], problem


def _import(request: HttpRequest, style: Style, file: Any) -> None:
    """Have examples imported, or say why that is refused."""
    try:
        services.start_import(style=style, file=file, name=file.name, person=request.user)
    except Refused as error:
        messages.error(request, sentence(error))
