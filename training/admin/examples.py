"""Examples and corrections in the admin."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.forms import Form, ModelForm, RadioSelect
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from captioner import services as captioner_services
from captioner.admin import images
from captioner.admin.base import COUNTED, MOST_AT_ONCE, STYLES, BigTable, Empty, ReadOnly, each, sentence, thumbnail
from captioner.admin.parameters import as_int
from captioner.errors import Refused
from captioner.models import Caption, Correction, Image, Style
from training import services
from training.models import Example

OFFERED = 24  # photos to choose from
PART = 1_000  # examples deleted in one transaction


class ExampleForm(ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    """A stored photo with a caption, as examples keep it. The newest photos are offered, and the one that an address
    names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field: Any = self.fields.get("image")
        if field is None:  # an example that is there is only looked at
            return
        field.help_text = "Another one? Open it under Images and press “Use as an example”."
        photos = list(Image.objects.all()[:OFFERED])
        with suppress(ValidationError):  # of what is not an id
            photos = list(dict.fromkeys([*Image.objects.filter(pk=self["image"].value()), *photos]))
        field.widget = RadioSelect(choices=[(photo.pk, _to_choose(photo)) for photo in photos])

    def clean_text(self) -> str:
        try:
            return services.caption_text(self.cleaned_data["text"])
        except Refused as error:
            raise ValidationError(sentence(error)) from error


def _to_choose(photo: Image) -> SafeString:
    url = reverse("image-thumbnail", args=[photo.pk])
    return format_html('<img class="square" src="{}" width="96" height="96" alt="{}" loading="lazy">', url, photo)


def _link(request: HttpRequest, photo: Image) -> tuple[str, str] | None:
    """From a photo's page to the form with the photo chosen."""
    if not request.user.has_perm("training.add_example"):
        return None
    return "Use as an example", f"{reverse('admin:training_example_add')}?image={photo.pk}"


images.links.append(_link)


@admin.register(Example)
class ExampleAdmin(BigTable):
    """What styles learn from. Files come in through a style's page; here a stored photo can be added by hand."""

    when_empty = Empty("No examples yet: [choose a style] and import a file, or add a photo with its caption.", STYLES)
    list_display = ("picture", "text", "style", "source", "held_out", "created_at")
    list_display_links = ("text",)
    list_filter = ("style", "source", "held_out")
    list_select_related = ("image", "style")
    search_fields = ("text",)
    form = ExampleForm
    fields = ("style", "image", "text")
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
            messages.error(request, f"More than {COUNTED:,} rows are selected; narrow the list first.")
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
                text="This cannot be undone. Their photos stay, and versions that were trained on them do not change.",
            )
        for start in range(0, len(chosen), PART):
            part = Example.objects.filter(pk__in=chosen[start : start + PART])
            with transaction.atomic():
                self.log_deletions(request, part)
                part.delete()
        messages.success(request, f"{len(chosen):,} examples were deleted.")
        return None

    @admin.display(description="photo")
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


class TakenFilter(admin.SimpleListFilter):
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

    when_empty = Empty("No corrections yet: [label captions], and the edited ones appear here.", "label")
    list_display = ("picture", "text", "instead_of", "style", "author", "taken", "created_at")
    list_display_links = ("text",)
    list_filter = (TakenFilter, OfStyle)
    list_select_related = ("caption__image", "caption__style", "author")
    search_fields = ("text",)
    actions = ("take_chosen", "leave_out_chosen")

    def get_urls(self) -> list[URLPattern]:
        """With how far the labelling of a style is."""
        view = "captioner.view_correction"
        return [self.route("labelling/<int:pk>/", self.labelling, "labelling", view), *super().get_urls()]

    def labelling(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Who has labelled how much in a style, what is left, and how far people agree."""
        style = get_object_or_404(Style, pk=pk)
        context = {
            "style": style,
            "people": captioner_services.labellers(style),
            "left": captioner_services.unlabelled(style).count(),
            "agreement": captioner_services.agreement(style),
            "share": settings.LABELLED_TWICE,
        }
        return self.page(request, "admin/training/labelling.html", f"Labelling of {style}", up=style, **context)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Correction]:
        """With `taken`: whether it is an example."""
        corrections: QuerySet[Correction] = super().get_queryset(request)
        same = Example.objects.filter(
            style=OuterRef("caption__style"), image=OuterRef("caption__image"), text=OuterRef("text")
        )
        return corrections.annotate(taken=Exists(same))

    @admin.display(description="photo")
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

    @admin.action(description="Add to the dataset of their style", permissions=["take"])
    def take_chosen(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        chosen = list(queryset.order_by().values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        if len(chosen) > MOST_AT_ONCE:
            messages.error(request, f"More than {MOST_AT_ONCE:,} rows are selected; narrow the list first.")
            return
        corrections = Correction.objects.filter(pk__in=chosen).select_related("caption__image", "caption__style")
        new = services.take_corrections(corrections)
        messages.success(request, f"{new:,} of {len(chosen):,} corrections were added to the dataset of their style.")

    @admin.action(description="Leave out permanently", permissions=["take"])
    def leave_out_chosen(self, request: HttpRequest, queryset: QuerySet[Correction]) -> None:
        each(request, queryset, lambda correction: services.leave_out([correction]), "corrections were left out")
