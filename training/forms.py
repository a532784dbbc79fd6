"""The admin's forms of training."""

from __future__ import annotations

from typing import Any

from django import forms

from captioner.errors import Refused
from clipcap.choices import Option
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
        return forms.ChoiceField(choices=list(declared.choices.items()), **shown)
    number = forms.IntegerField if declared.kind is int else forms.FloatField
    return number(required=not declared.automatic, **shown)


class ImportForm(forms.Form):
    """A file of examples."""

    file = forms.FileField(
        help_text="A zip of photos with their captions: as COCO or Karpathy JSON, CSV, TSV, JSONL, Flickr8k's or "
        "Flickr30k's tokens, or a .txt next to each photo. Rows that cannot be used are listed; the others are "
        "imported."
    )
