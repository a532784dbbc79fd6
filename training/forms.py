"""The admin's forms of training."""

from __future__ import annotations

from typing import Any

from django import forms

from captioner.errors import Refused
from training.options import SOURCES, RunOptions
from training.services import run_options

DEFAULTS = RunOptions()


class RetrainForm(forms.Form):
    """`RunOptions`, with help. What has no sense is said beside its field, by the options themselves."""

    start = forms.ChoiceField(
        label="Start from",
        choices=(("active", "the version in service"), ("scratch", "scratch")),
        help_text="The version in service is trained further on the examples; from scratch takes longer.",
    )
    sources = forms.MultipleChoiceField(
        choices=[
            (source, label)
            for source, label in zip(SOURCES, ("imported files", "stored photos", "people's corrections"), strict=True)
        ],
        widget=forms.CheckboxSelectMultiple,
        help_text="Which of the style's examples to learn from.",
    )
    epochs = forms.IntegerField(
        help_text="Number of passes over the examples; 0 for automatic: until the loss on the held-out photos stops "
        "improving."
    )
    learning_rate = forms.FloatField(
        help_text="0 for automatic: 0.001 from scratch, 0.0003 from the version in service. Lower it if the loss jumps."
    )
    batch_size = forms.IntegerField(help_text="Captions per step.")
    noise = forms.FloatField(
        help_text="Noise added to the photo embeddings, against overfitting on few examples; 0 for none."
    )
    seed = forms.IntegerField(help_text="The same seed, options and examples give the same mapper.")
    mapper = forms.ChoiceField(
        choices=(("transformer", "Transformer"), ("mlp", "MLP")), help_text="From scratch only: kind of network."
    )
    prefix_length = forms.IntegerField(
        help_text="From scratch only: number of vectors given to the language model; 1 to 64."
    )
    layers = forms.IntegerField(help_text="From scratch only, of a Transformer: 1 to 16.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            default = getattr(DEFAULTS, name)
            field.initial = list(default) if isinstance(default, tuple) else default
            field.widget.attrs["step"] = "any" if isinstance(field, forms.FloatField) else None
            if not isinstance(field, forms.FloatField):
                del field.widget.attrs["step"]

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
        """Say what is refused beside the field that the sentence begins with, or above all."""
        self.add_error(next((name for name in self.fields if error.detail.startswith(f"{name} ")), None), error.detail)


class ImportForm(forms.Form):
    """A file of examples."""

    file = forms.FileField(
        help_text="A zip of photos with their captions: as COCO or Karpathy JSON, CSV, TSV, JSONL, Flickr8k's or "
        "Flickr30k's tokens, or a .txt next to each photo. Rows that cannot be used are listed; the others are "
        "imported."
    )
