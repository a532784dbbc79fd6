"""The models of training: Example, Import, TrainingRun and what it leaves, RefusedRun, Policy."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from captioner.jobs.job import JobQuerySet, OrderedJob
from captioner.models import BaseModels, Correction, Image, MapperVersion, Style
from captioner.reports import Stored, VersionReport
from clipcap.evaluation.comparison import HELD_OUT_SHARE
from clipcap.evaluation.names import metric_name
from training.datasets.keys import LONGEST_KEY, Keys
from training.options import RunOptions
from training.reports import LossCurve


def is_held_out(image: Image) -> bool:
    """Whether an image belongs to the validation split.

    Told by its bytes alone, so an image is in one split for ever and in all styles, and the scores of two runs compare.
    """
    return int.from_bytes(hashlib.sha256(image.sha256.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


class Example(models.Model):
    """An image with a caption to learn from, in a style's dataset."""

    class Source(models.TextChoices):
        IMPORTED = "imported"
        STORED = "stored"
        CORRECTION = "correction"

    source = models.CharField(max_length=10, choices=Source)
    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="examples")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="examples")
    text = models.CharField(max_length=500)
    held_out = models.BooleanField(editable=False, help_text="used for validation, never for training")
    correction = models.OneToOneField(Correction, null=True, blank=True, on_delete=models.SET_NULL, editable=False)
    batch = models.ForeignKey(
        "Import", null=True, blank=True, on_delete=models.SET_NULL, related_name="examples", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-pk",)
        constraints = (models.UniqueConstraint(fields=["style", "image", "text"], name="examples_are_unique"),)
        indexes = (
            models.Index(fields=["style", "held_out", "id"], name="example_split"),
            # The photos of a dataset, counted from the index alone.
            models.Index(fields=["style", "held_out", "image"], name="example_images_by_split"),
            models.Index(fields=["style", "source", "image"], name="example_images_by_source"),
            models.Index(fields=["-created_at", "-id"], name="example_newest"),
            models.Index(fields=["style", "-created_at", "-id"], name="example_of_style"),
        )

    def __str__(self) -> str:
        return self.text


class Import(OrderedJob):
    """A batch of examples on its way into a dataset: a file uploaded, or a folder on the server."""

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="imports")
    file = models.FileField(upload_to="imports/", blank=True, max_length=200)
    name = models.CharField(max_length=255, help_text="name of the uploaded file or folder")
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    picture_column = models.CharField(
        max_length=LONGEST_KEY, blank=True, default="", db_default="", editable=False, help_text="as chosen by a person"
    )
    caption_column = models.CharField(max_length=LONGEST_KEY, blank=True, default="", db_default="", editable=False)
    rows = models.PositiveIntegerField(default=0, editable=False, help_text="rows read so far; it resumes here")
    total = models.PositiveIntegerField(null=True, editable=False)
    accepted = models.PositiveIntegerField(default=0, editable=False)
    duplicates = models.PositiveIntegerField(default=0, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta(OrderedJob.Meta):
        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        return f"{self.name} for {self.style}"

    @property
    def keys(self) -> Keys:
        """What its columns are called."""
        return Keys(self.picture_column, self.caption_column)


class RejectedRow(models.Model):
    """A row of an import that is not an example, and why."""

    batch = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="rejected")
    file = models.CharField(max_length=255)
    line = models.PositiveIntegerField(help_text="the line, or the entry's number in a JSON list")
    reason = models.CharField(max_length=300)

    class Meta:
        db_table = "training_refusedrow"  # as the release before calls it, whose workers may run beside this one
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class TrainingRun(OrderedJob):
    """One retraining of a style, with what it made and how that compares."""

    class Verdict(models.TextChoices):
        """Of the candidate against the version in service; `first` where there was none."""

        BETTER = "better"
        UNCLEAR = "unclear"
        WORSE = "worse"
        FIRST = "first"

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="runs")
    options = models.JSONField(default=dict, help_text="RunOptions")
    base = models.ForeignKey(
        MapperVersion, null=True, on_delete=models.PROTECT, related_name="+", help_text="version it starts from"
    )
    base_models = models.ForeignKey(
        BaseModels, null=True, on_delete=models.PROTECT, related_name="runs", help_text="models it trains for"
    )
    last_example = models.BigIntegerField(default=0, help_text="the dataset includes examples up to this one")
    examples = models.PositiveIntegerField(default=0)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    reason = models.CharField(max_length=200, blank=True, help_text="why it was started, if not by a person")
    reached = models.PositiveIntegerField(default=0, db_default=0, help_text="the highest epoch reached")
    progress = models.JSONField(default=dict, help_text="step, steps, epoch, eta_seconds, samples_per_second …")
    curve = models.JSONField(default=list, help_text="[[step, training loss, learning rate]]")
    metrics = models.JSONField(default=dict, help_text="candidate, active, difference and its interval")
    comparison = models.JSONField(default=list, help_text="held-out images, largest differences first")
    verdict = models.CharField(max_length=20, choices=Verdict, blank=True)
    version = models.OneToOneField(MapperVersion, null=True, on_delete=models.SET_NULL, related_name="run")
    idempotency_key = models.CharField(max_length=255, null=True)

    objects = JobQuerySet.as_manager()
    chosen = Stored(RunOptions.read, "options")
    """Its options."""
    loss_curve = Stored(LossCurve.read, "curve")
    """How its loss went so far."""

    class Meta(OrderedJob.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            *OrderedJob.Meta.constraints,
            models.UniqueConstraint(
                fields=["style"], condition=Q(status__in=("queued", "running")), name="one_run_at_a_time"
            ),
            models.UniqueConstraint(
                fields=["style", "person", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="run_keys_are_unique",
            ),
        ]

    def __str__(self) -> str:
        return f"run {self.pk} of {self.style.slug}"

    @property
    def report(self) -> VersionReport:
        """How good what it made was found to be."""
        return replace(VersionReport.read(self.metrics), verdict=self.verdict or None)


class RunEvent(models.Model):
    """Something worth knowing that happened in a run."""

    class Level(models.TextChoices):
        INFO = "info", "info"
        WARNING = "warning", "warning"
        ERROR = "error", "error"

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="events")
    level = models.CharField(max_length=7, choices=Level, default=Level.INFO)
    message = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.message


class EpochReport(models.Model):
    """How good a run was at the end of an epoch, and what it wrote about the same held-out photos."""

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="reports")
    epoch = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    training_loss = models.FloatField()
    validation_loss = models.FloatField()
    samples = models.JSONField(default=list, help_text='[{"image", "text", "reference"}]')
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "training_checkpoint"  # as the release before calls it, whose workers may run beside this one
        ordering = ("epoch",)
        constraints = (models.UniqueConstraint(fields=["run", "epoch"], name="one_checkpoint_an_epoch"),)

    def __str__(self) -> str:
        return f"epoch {self.epoch}: {self.validation_loss:.3f}"


class RefusedRun(models.Model):
    """A style that base models in preparation still need a run of, and why it could not be queued."""

    base_models = models.ForeignKey(BaseModels, on_delete=models.CASCADE, related_name="refused_runs")
    style = models.ForeignKey(Style, on_delete=models.CASCADE, related_name="refused_runs")
    detail = models.TextField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["base_models", "style"], name="refused_runs_are_unique"),)

    def __str__(self) -> str:
        return f"{self.style.slug}: {self.detail}"


class Policy(models.Model):
    """When a style is retrained by itself, and what becomes of the result."""

    class Action(models.TextChoices):
        PROMOTE = "promote", "promote automatically"
        ASK = "ask", "wait for approval"
        VOTE = "vote", "promote after a blind vote prefers it"

    METRICS = ("CIDEr", "Bleu_4", "ROUGE_L", "METEOR")

    style = models.OneToOneField(Style, on_delete=models.CASCADE, related_name="policy")
    metric = models.CharField(max_length=10, choices=[(m, metric_name(m)) for m in METRICS], default="CIDEr")
    margin = models.FloatField(
        default=0.0,
        validators=[MinValueValidator(0)],
        help_text="margin by which the confidence interval of the difference must clear zero",
    )
    if_better = models.CharField(max_length=7, choices=Action, default=Action.ASK)
    after_corrections = models.PositiveIntegerField(
        null=True, blank=True, help_text="retrain after this many new corrections; empty for never"
    )
    every_night = models.BooleanField(default=False, help_text="retrain nightly if there are new examples")
    refusal = models.TextField(
        blank=True, db_default="", editable=False, help_text="why a scheduled run could not be started"
    )
    refused_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name_plural = "policies"

    def __str__(self) -> str:
        return f"policy of {self.style}"
