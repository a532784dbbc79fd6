"""Photos, what an encoder made of them, and texts that are looked for among them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from captioner.jobs.job import JobQuerySet, OrderedJob


class Image(models.Model):
    """One picture of one sender, found by the SHA-256 of the bytes uploaded.

    The same bytes from somebody else are another picture: its id, its time and what it costs to look at tell nothing.
    What is kept is a JPEG made from its pixels: upright, of a sane size, without metadata or whatever else the upload
    held. Every picture has a file of its own name, so that deleting one can never take the file of another.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    sha256 = models.CharField(max_length=64, db_index=True, editable=False)
    sender = models.CharField(max_length=80, blank=True, default="", db_default="", editable=False)
    file = models.FileField(upload_to="images/", max_length=200)
    thumbnail = models.FileField(upload_to="thumbnails/", max_length=200)
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size = models.PositiveIntegerField(help_text="size of the stored file, in bytes")
    credit = models.CharField(
        max_length=300, blank=True, help_text="shown next to the picture, as its licence requires"
    )
    credit_url = models.URLField(blank=True, max_length=500)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-created_at", "-id")
        indexes = (models.Index(fields=["-created_at", "-id"], name="image_newest"),)
        constraints = (
            models.UniqueConstraint(fields=["sha256", "sender"], condition=~Q(sender=""), name="one_image_of_a_sender"),
        )

    def __str__(self) -> str:
        return f"{self.width} x {self.height}, {self.sha256[:8]}"

    @property
    def is_long(self) -> bool:
        """Whether a tile that is filled with it would show less than half of it: a panorama, or a tall picture."""
        return max(self.width, self.height) > 2 * min(self.width, self.height)

    @classmethod
    def lock(cls, pks: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """Lock images until the transaction ends, so that nobody deletes them; in the order of their keys, or two who
        have locked each other's next image would wait for each other.

        Returns:
            Those that exist.
        """
        rows = cls.objects.select_for_update(no_key=True).filter(pk__in=pks)
        return list(rows.order_by("pk").values_list("pk", flat=True))

    @classmethod
    def unreferenced(cls) -> Q:
        """Images that nothing needs: no caption, and no other row that must not lose its image."""
        unneeded = Q()
        for rows in cls.rows_of(OuterRef("pk")):
            unneeded &= ~Q(Exists(rows))
        return unneeded

    @classmethod
    def rows_of(cls, image: Any) -> list[models.QuerySet[Any]]:
        """The rows that must not lose this image, by kind: captions, drafts, and those of other apps."""
        return [
            relation.related_model._base_manager.filter(**{relation.field.name: image})
            for relation in cls._meta.get_fields(include_hidden=True)
            if isinstance(relation, models.ManyToOneRel) and relation.on_delete is models.PROTECT
        ]


class Embedding(models.Model):
    """What one encoder makes of one image: computed once, kept."""

    image = models.ForeignKey(Image, on_delete=models.CASCADE, related_name="embeddings")
    encoder = models.CharField(max_length=200, help_text="the encoder's identity")
    vector = models.BinaryField(help_text="float32, little-endian")

    class Meta:
        constraints = (models.UniqueConstraint(fields=["image", "encoder"], name="one_embedding_per_encoder"),)

    def __str__(self) -> str:
        return f"{self.image_id} by {self.encoder}"


class TextEmbedding(OrderedJob):
    """What the text half of an encoder makes of words that somebody searched for: computed once by a caption worker,
    kept for a while. Whose search it was is not kept."""

    encoder = models.CharField(max_length=200, help_text="the identity of the encoder's text half")
    text = models.CharField(max_length=200)
    vector = models.BinaryField(null=True, help_text="float32, little-endian")

    objects = JobQuerySet.as_manager()

    class Meta(OrderedJob.Meta):
        constraints = [
            *OrderedJob.Meta.constraints,
            models.UniqueConstraint(fields=["encoder", "text"], name="one_text_embedding_per_encoder"),
        ]

    def __str__(self) -> str:
        return f"{self.text!r} by {self.encoder}"
