"""What the admin's pages share: pages of our own with their permissions, lists that never count a big table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from django.apps import apps
from django.contrib import admin, messages
from django.core.exceptions import FieldDoesNotExist, PermissionDenied
from django.core.paginator import Paginator
from django.db.models import DateTimeField, ForeignKey, Model, QuerySet, UUIDField
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.views.decorators.http import require_safe

from captioner import audit
from captioner.admin.parameters import as_int, as_uuid
from captioner.errors import Refused
from captioner.models import Image
from captioner.templatetags.captions import number, when

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

COUNTED = 10_000  # rows of a list that are counted and paged through; what is further away is reached by narrowing
SEARCHED = 100_000  # newest rows that a search reads
MOST_AT_ONCE = 1_000  # rows of an action
# Lists that several other lists link to.
STYLES, VERSIONS = "admin:captioner_style_changelist", "admin:captioner_mapperversion_changelist"
STATES = ("status", "verdict")  # columns whose values are coloured; the style sheet has a colour for each


@cache
def _as_shown(model: str, column: Any) -> Any:
    """What shows a field of a model in the admin: a function where Django's own way is not that of our pages."""
    try:
        field: Any = apps.get_model(model)._meta.get_field(column)
    except (FieldDoesNotExist, TypeError, AttributeError):  # a function, or what the admin calls so
        return column

    def moment(row: Any) -> SafeString | None:
        return when(getattr(row, column)) or None

    def state(row: Any) -> SafeString | None:
        value = getattr(row, column)
        kind = f"{column}-{value}" if column == "verdict" else value
        words = getattr(row, f"get_{column}_display")()
        return format_html('<span class="state {}">{}</span>', kind, words) if value else None

    if isinstance(field, DateTimeField):
        show: Any = moment
    elif column in STATES and field.choices:
        show = state
    else:
        return column
    show.__name__ = column
    return admin.display(description=field.verbose_name, ordering=column)(show)


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # generic for type checkers only
    """Counts no further than `COUNTED`, so that the first page of a million rows costs what that of a hundred does."""

    @cached_property
    def _reached(self) -> int:
        return counted(self.object_list)  # type: ignore[arg-type]

    @cached_property
    def count(self) -> int:
        return min(self._reached, COUNTED)

    @property
    def has_more(self) -> bool:
        """Whether there are rows beyond those counted."""
        return self._reached > COUNTED


class Empty(NamedTuple):
    """What a list says that has no rows yet: a sentence about what to do, with [a link] to where that is done."""

    sentence: str
    address: str  # of the link, by its name
    takes: str = ""  # permission; who lacks it reads the same without the link

    @property
    def parts(self) -> list[str]:
        """What is before the link, the link's text, and what is behind it."""
        return self.sentence.replace("]", "[").split("[")


class AsOnPages(ModelAdmin):
    """A list that shows moments as all pages do, statuses as words with colour, and while it is empty the next step."""

    when_empty: Empty

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        return [_as_shown(self.opts.label, name) for name in super().get_list_display(request)]

    def get_list_select_related(self, request: HttpRequest) -> Any:
        """What the list says; if it says nothing, every foreign key among its columns. Django takes none that may be
        empty."""
        named = (name for name in self.list_display if isinstance(name, str))
        related = {f.name for f in self.opts.fields if isinstance(f, ForeignKey)}
        return self.list_select_related or [name for name in named if name in related]

    def get_sortable_by(self, request: HttpRequest) -> list[Any]:
        return [_as_shown(self.opts.label, name) for name in super().get_sortable_by(request)]


class AdminWithPages(AsOnPages):
    """A `ModelAdmin` with pages of its own, each with the permission that it takes."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    actions_on_bottom = False

    def route(
        self, pattern: str, view: Callable[..., HttpResponseBase], name: str, permission: str, *methods: str
    ) -> URLPattern:
        """`view` at `pattern`, for those with the permission. What is refused is said where they came from."""

        def checked(request: HttpRequest, **arguments: Any) -> HttpResponseBase:
            if not request.user.has_perm(permission):
                raise PermissionDenied
            if request.method not in (methods or ("GET", "HEAD")):
                return HttpResponseNotAllowed(methods)
            try:
                return view(request, **arguments)
            except Refused as error:
                messages.error(request, sentence(error))
                return self.back(request)

        return path(pattern, self.admin_site.admin_view(checked), name=f"{self._name}_{name}")

    def page(
        self, request: HttpRequest, template: str, title: str, status: int = 200, **context: Any
    ) -> TemplateResponse:
        """A page of this admin, in the admin's frame."""
        shared = {**self.admin_site.each_context(request), "title": title, "opts": self.opts}
        return TemplateResponse(request, template, {**shared, **context}, status=status)

    def back(self, request: HttpRequest) -> HttpResponseRedirect:
        """To the page whose button was pressed, or to the list."""
        referer = request.headers.get("Referer", "")
        if referer != request.build_absolute_uri() and url_has_allowed_host_and_scheme(referer, {request.get_host()}):
            return HttpResponseRedirect(referer)
        return HttpResponseRedirect(reverse(f"admin:{self._name}_changelist"))

    def viewed(self, request: HttpRequest, pk: Any, queryset: QuerySet[Any] | None = None) -> Any:
        """The object to be shown.

        Raises:
            PermissionDenied, Http404: it is not for this person, or not there.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        return get_object_or_404(self.get_queryset(request) if queryset is None else queryset, pk=pk)

    def done(self, request: HttpRequest, changed: Model, message: str) -> HttpResponseRedirect:
        """Show a message, and record the action in the object's history."""
        self.log_change(request, changed, message)
        messages.success(request, capfirst(message) + ".")
        return self.back(request)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """In the audit log too."""
        audit.record_deletion(str(self.opts.verbose_name_plural), queryset)
        return super().log_deletions(request, queryset)

    @property
    def _name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}"


class ReadOnly(AdminWithPages):
    """Read-only rows in the admin."""

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """As in lists."""
        fields: Sequence[Any] = super().get_fields(request, obj)
        return [_as_shown(self.opts.label, name) for name in fields]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class WithNewPage(AdminWithPages):
    """Rows that a page of our own adds in place of Django's form."""

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Django's way to that page, which `add` makes."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        return self.add(request)

    def add(self, request: HttpRequest) -> HttpResponse:
        """The page."""
        raise NotImplementedError


class OwnPage(ReadOnly):
    """Read-only rows, each shown by a page of our own in place of Django's form."""

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Django's way to the page of a row, which `show` makes."""
        key = as_uuid if isinstance(self.opts.pk, UUIDField) else as_int
        return self.show(request, key(object_id))

    def show(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """The page of a row."""
        raise NotImplementedError


class BigTable(AdminWithPages):
    """A table that may hold millions of rows, each with its time in `created_at`: nothing here reads all of them."""

    paginator = BoundedPaginator
    list_per_page = 50
    list_max_show_all = 200
    sortable_by = ("created_at",)
    empty_value_display = ""
    ordering = ("-created_at", "-pk")
    date_hierarchy = "created_at"
    change_list_template = "admin/big_change_list.html"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The newest `SEARCHED` of what the filters leave, searched: no index finds a word within a text."""
        if search_term:
            newest = queryset.order_by("-created_at").values_list("created_at", flat=True)
            if oldest := newest[SEARCHED : SEARCHED + 1].first():
                queryset = queryset.filter(created_at__gte=oldest)
        return super().get_search_results(request, queryset, search_term)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"drill_down": drill_down(self.model, request), "searched": SEARCHED, **(extra_context or {})}
        return super().changelist_view(request, context)


def drill_down(model: type[Any], request: HttpRequest) -> list[dict[str, Any]]:
    """Links to narrow a list to a year, a month, a day, and back; from the first row's date and the last one's alone.

    Django's own reads the whole table to leave out the days without rows.
    """
    times = model._default_manager.order_by("created_at").values_list("created_at", flat=True)
    first, last = times.first(), times.last()
    if first is None or last is None:
        return []
    begins, ends = timezone.localtime(first).date(), timezone.localtime(last).date()
    fields = ("created_at__year", "created_at__month", "created_at__day")
    chosen = []
    for name in fields:
        text = request.GET.get(name, "")
        if not text.isdecimal():
            break
        chosen.append(int(text))
    if not chosen and begins.year == ends.year:
        chosen = [begins.year]
    kept: list[tuple[str, Any]] = [
        (key, value) for key, value in request.GET.items() if key not in fields and key != "p"
    ]

    def link(title: str, parts: Iterable[int], **more: bool) -> dict[str, Any]:
        query = urlencode([*kept, *zip(fields, parts, strict=False)])
        return {"title": title, "query": f"?{query}", **more}

    try:
        day = date(*[*chosen, 1, 1][:3]) if chosen else begins
    except ValueError:
        return [link("All dates", ())]
    names = (f"{day:%Y}", f"{day:%B %Y}", f"{day:%-d %B %Y}")
    links = [link("All dates", ())] if chosen else []
    links += [link(names[i], chosen[: i + 1], chosen=i + 1 == len(chosen)) for i in range(len(chosen))]
    if not chosen:
        return [link(str(year), (year,)) for year in range(begins.year, ends.year + 1)]
    if len(chosen) == 1:
        months = [date(day.year, month, 1) for month in range(1, 13)]
        return links + [link(f"{m:%B}", (m.year, m.month)) for m in months if begins.replace(day=1) <= m <= ends]
    if len(chosen) == 2:
        days = [day + timedelta(days=i) for i in range(31)]
        return links + [
            link(str(d.day), (d.year, d.month, d.day)) for d in days if d.month == day.month and begins <= d <= ends
        ]
    return links


def counted(rows: QuerySet[Any]) -> int:
    """How many rows there are, as far as one more than `COUNTED`."""
    return rows.order_by()[: COUNTED + 1].count()


def so_many(count: int) -> str:
    """What `counted` found, for people."""
    return f"{COUNTED:,} or more" if count > COUNTED else f"{count:,}"


def many(count: int) -> str:
    """The same for pages, as the reader writes numbers."""
    return so_many(count) if count > COUNTED else number(count)


def thumbnail(image: Image | None, size: int = 64) -> SafeString:
    """A thumbnail of the picture, loaded lazily. Pressed, it leads to the image's page."""
    if image is None:
        return format_html("{}", "")
    return format_html(
        '<a href="{}"><img class="thumbnail" src="{}" width="{}" height="{}" alt="View the photo" loading="lazy"></a>',
        reverse("admin:captioner_image_change", args=[image.pk]),
        reverse("image-thumbnail", args=[image.pk]),
        max(1, round(size * image.width / max(image.width, image.height))),
        max(1, round(size * image.height / max(image.width, image.height))),
    )


def each(request: HttpRequest, rows: Sequence[Any] | QuerySet[Any], action: Callable[[Any], object], done: str) -> None:
    """Apply an action to each row, and report how many succeeded and why others did not."""

    def one_by_one(chosen: list[Any]) -> list[Refused]:
        refused: list[Refused] = []
        for row in chosen:
            try:
                action(row)
            except Refused as error:
                refused.append(error)
        return refused

    together(request, rows, one_by_one, done)


def together(
    request: HttpRequest,
    rows: Sequence[Any] | QuerySet[Any],
    action: Callable[[list[Any]], list[Refused]],
    done: str,
) -> None:
    """Apply an action to all rows, which returns why it did not succeed with some, and report that as `each` does."""
    chosen = list(rows[: MOST_AT_ONCE + 1])
    if len(chosen) > MOST_AT_ONCE:
        messages.error(request, f"More than {MOST_AT_ONCE:,} rows are selected; narrow the list first.")
        return
    refused = action(chosen)
    if count := len(chosen) - len(refused):
        messages.success(request, f"{count:,} {done}.")
    if refused:
        messages.warning(request, f"{len(refused):,} failed: {refused[0].detail}.")


def page_status(error: Refused) -> int:
    """The status of a form's page that says what was refused: 200 where the form can be corrected, the error's own
    where the server is to blame, so that proxies and monitoring see it."""
    return error.status if error.status >= 500 else 200


def sentence(error: Refused) -> str:
    """An error as a sentence on a page."""
    return capfirst(error.detail) + "."


def duration(seconds: float) -> str:
    """A length of time for people: `45 s`, `3 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def since(moment: datetime) -> SafeString:
    """How long ago, to the second where that matters."""
    return when(moment, f"{duration(max(0.0, (timezone.now() - moment).total_seconds()))} ago")
