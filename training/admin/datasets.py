"""The dataset of a style in the admin: imports, corrections, and what it holds."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern

from captioner.admin.base import AdminWithPages, page_status
from captioner.admin.plots import bars
from captioner.errors import Refused
from training import services
from training.datasets.statistics import statistics
from training.forms import ImportForm

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


class DatasetPages(AdminWithPages):
    """What a style learns from, and where it comes from."""

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("<int:pk>/import/", self.import_examples, "import", "training.add_import", "GET", "POST"),
            self.route("<int:pk>/take/", self.take_corrections, "take", "training.add_example", "POST"),
            self.route("<int:pk>/dataset/", self.dataset, "dataset", "training.view_example"),
            *super().get_urls(),
        ]

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
