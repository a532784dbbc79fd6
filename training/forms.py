"""The admin's forms of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms

from captioner.errors import Refused
from captioner.models import Image, Style
from captioner.services import styles_in_service
from clipcap.choices import Option
from training.datasets.keys import LONGEST_KEY, Keys
from training.options import OPTIONS
from training.services import run_options


class RetrainForm(forms.Form):
    """`RunOptions`. What has no sense is said beside its field, by the options themselves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields.update({name: _field(declared) for name, declared in OPTIONS.items()})
        self.order_fields(["start", "sources"])

    def clean(self) -> dict[str, Any]:
        """The options as `start_run` takes them."""
        cleaned = super().clean() or {}
        if not self.errors:
            try:
                run_options(cleaned)
            except Refused as error:
                self.refuse(error)
        return cleaned

    def refuse(self, error: Refused) -> None:
        """Say what is refused beside the field that is to blame, or above all."""
        field = error.extra.get("field")
        self.add_error(field if field in self.fields else None, error.detail)


def _field(declared: Option) -> forms.Field:
    shown: dict[str, Any] = {"help_text": declared.full_help, "initial": declared.default}
    if declared.name == "start":
        shown["label"] = "Start from"
    if declared.several:
        chosen = {**shown, "initial": list(declared.default)}
        return forms.MultipleChoiceField(
            choices=list(declared.choices.items()), widget=forms.CheckboxSelectMultiple, **chosen
        )
    if declared.choices:
        choices = list(declared.choices.items())
        if declared.automatic:
            return forms.TypedChoiceField(
                choices=[("", "automatic"), *choices], required=False, empty_value=None, **shown
            )
        return forms.ChoiceField(choices=choices, **shown)
    number = forms.IntegerField if declared.whole else forms.FloatField
    return number(required=not declared.automatic, **shown)


class SentencesForm(forms.Form):
    """A sentence about each of some photos; photos left blank are left out."""

    def __init__(self, *args: Any, photos: Sequence[Image] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.photos = {_sentence(image): image for image in photos}
        for number, name in enumerate(self.photos, 1):
            self.fields[name] = forms.CharField(
                label=f"Caption of photo {number}",
                required=False,
                max_length=500,
                widget=forms.Textarea(attrs={"rows": 2, "maxlength": 500, "aria-label": f"Caption of photo {number}"}),
            )

    @property
    def rows(self) -> list[tuple[Image, forms.BoundField]]:
        """Each photo with its field."""
        return [(image, self[name]) for name, image in self.photos.items()]

    @property
    def others(self) -> list[forms.BoundField]:
        """The fields that are not about a photo."""
        return [self[name] for name in self.fields if name not in self.photos]

    @property
    def sentences(self) -> list[tuple[Image, str]]:
        """What was written, about which photo."""
        return [(image, text) for name, image in self.photos.items() if (text := self.cleaned_data[name])]


def _sentence(image: Image) -> str:
    return f"sentence-{image.pk}"


class NewStyleForm(SentencesForm):
    """A style from nothing."""

    name = forms.CharField(max_length=80, widget=forms.TextInput(attrs={"autofocus": True}))
    description = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="What its captions are like, for those who choose a style.",
    )
    starts_from = forms.ModelChoiceField(
        Style.objects.none(),
        required=False,
        empty_label="nothing: trained from scratch, on thousands of examples",
        label="Start from",
        help_text="A few examples are enough to change how that style writes.",
    )
    slug = forms.SlugField(
        required=False,
        label="Short name",
        help_text="Its name in addresses and commands; made of the name if left empty.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        styles = styles_in_service()
        field = self.fields["starts_from"]
        field.queryset, field.initial = styles, styles.first()  # type: ignore[attr-defined]


class ImportForm(forms.Form):
    """A file of examples."""

    file = forms.FileField(
        help_text="A zip of photos with their captions: as COCO or Karpathy JSON, CSV, TSV, JSONL, Flickr8k's or "
        "Flickr30k's tokens, or a .txt next to each photo. Rows that cannot be used are listed; the others are "
        "imported."
    )
    picture_column = forms.CharField(required=False, max_length=LONGEST_KEY)  # offered once the file was looked at
    caption_column = forms.CharField(required=False, max_length=LONGEST_KEY)

    @property
    def keys(self) -> Keys:
        """What the file's columns are called."""
        return Keys(self.cleaned_data["picture_column"], self.cleaned_data["caption_column"])
