"""The nouns of the service: images, styles, mapper versions, promotions, captions, and what belongs to them."""

from __future__ import annotations

import ipaddress
import math
import uuid
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.crypto import salted_hmac

from captioner.jobs import UNFINISHED, Job, JobQuerySet, Status, clock
from clipcap.fingerprint import file_sha256
from clipcap.options import is_unsure

EVERYBODY = "*"  # as a caption's visitor: an example that is shown to all
EXAMPLES = f"visitor:{EVERYBODY}"  # the sender of examples, and of what is imported into datasets
SILENCE = timedelta(seconds=30)  # after which a worker counts as lost


class FiniteField(models.FloatField):  # type: ignore[type-arg]
    """A float that reads as None where what is stored is not a finite number."""

    def deconstruct(self) -> Any:
        """As in the database: a float like any other."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.FloatField", args, kwargs

    def from_db_value(self, value: float | None, *_: Any) -> float | None:
        return value if value is not None and math.isfinite(value) else None


class ProbabilityField(FiniteField):
    """A float that reads as None where what is stored is not a probability."""

    def from_db_value(self, value: float | None, *_: Any) -> float | None:
        return probability(value)


def probability(value: Any) -> float | None:
    """A stored value as a probability, 0 to 1; None where it is none."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


class Viewer:
    """Who looks: a signed-in user, or an anonymous visitor known by a random name in their session.

    Users see what is theirs, visitors what they asked for in the same browser, and all see the examples; whoever may
    view all captions in the admin sees all. Beside that, what belongs to no user can be reached by its id, which
    cannot be guessed, and changed so if no browser's visitor asked for it: that is how an anonymous program works.
    """

    def __init__(
        self, user: AbstractBaseUser | AnonymousUser | None = None, visitor: str = "", address: str = ""
    ) -> None:
        self.user: Any = user if user is not None and user.is_authenticated else None
        self.visitor = "" if self.user else visitor
        self.address = "" if self.user else address

    @property
    def flow(self) -> str:
        """Among whose captions theirs take their turns: the user's own, or those of the address, since a browser can
        become a new visitor at any time. Of the address no more is kept than tells it from others."""
        if self.user:
            return f"user:{self.user.pk}"
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return ""  # commands
        network = ipaddress.ip_network((address, 64 if address.version == 6 else 32), strict=False)
        return f"address:{salted_hmac('captioner.flow', str(network)).hexdigest()[:32]}"

    def listed(self) -> Q:
        """Captions and requests shown in the viewer's lists."""
        return reduce(or_, self.listed_parts())

    def listed_parts(self) -> list[Q]:
        """The same in parts, of which a database reads each from an index of its own; together it may read a million
        rows."""
        return [Q()] if self._may("view") else [Q(visitor=EVERYBODY), self.own()]

    def reachable(self) -> Q:
        """Those the viewer may open by id."""
        return Q() if self._may("view") else Q(owner=None) | self.own()

    def changeable(self) -> Q:
        """Those the viewer may cancel, try again and correct."""
        return Q() if self._may("change") else Q(owner=None, visitor="") | self.own()

    def deletable(self) -> Q:
        """Those the viewer may delete."""
        return Q() if self._may("delete") else Q(owner=None, visitor="") | self.own()

    @property
    def sender(self) -> str:
        """Under which name the pictures that the viewer sends are kept, apart from the same ones of others; empty for
        somebody who cannot be known again."""
        if self.user:
            return f"user:{self.user.pk}"
        return f"visitor:{self.visitor}" if self.visitor else ""

    @property
    def sees_all(self) -> bool:
        """Whether the viewer's lists show everybody's captions."""
        return self._may("view")

    def own(self) -> Q:
        """Those the viewer asked for."""
        if self.user:
            return Q(owner=self.user)
        return Q(owner=None, visitor=self.visitor) if self.visitor else Q(pk__in=())

    def _may(self, action: str) -> bool:
        return self.user is not None and bool(self.user.has_perm(f"captioner.{action}_caption"))


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
    size = models.PositiveIntegerField(help_text="of the file kept, in bytes")
    credit = models.CharField(max_length=300, blank=True, help_text="shown beside the picture, as its licence asks")
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

    @classmethod
    def unreferenced(cls) -> Q:
        """Images that nothing needs: no caption, and no other row that must not lose its image."""
        unneeded = Q()
        for relation in cls._meta.get_fields(include_hidden=True):
            if isinstance(relation, models.ManyToOneRel) and relation.on_delete is models.PROTECT:
                rows = relation.related_model._base_manager.filter(**{relation.field.name: OuterRef("pk")})
                unneeded &= ~Q(Exists(rows))
        return unneeded


class DiscardedFile(models.Model):
    """A file of the storage whose row is gone and which has to go too; deleted with it."""

    name = models.CharField(max_length=200, help_text="in the storage")
    attempts = models.PositiveIntegerField(default=0, db_default=0)
    error = models.CharField(max_length=300, blank=True, db_default="", help_text="why it could not be deleted")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name


class Embedding(models.Model):
    """What one encoder makes of one image: computed once, kept."""

    image = models.ForeignKey(Image, on_delete=models.CASCADE, related_name="embeddings")
    encoder = models.CharField(max_length=200, help_text="the encoder's identity")
    vector = models.BinaryField(help_text="float32, little-endian")

    class Meta:
        constraints = (models.UniqueConstraint(fields=["image", "encoder"], name="one_embedding_per_encoder"),)

    def __str__(self) -> str:
        return f"{self.image_id} by {self.encoder}"


class TextEmbedding(Job):
    """What the text half of an encoder makes of words that somebody searched for: computed once by a caption worker,
    kept for a while. Whose search it was is not kept."""

    encoder = models.CharField(max_length=200, help_text="the identity of the encoder's text half")
    text = models.CharField(max_length=200)
    vector = models.BinaryField(null=True, help_text="float32, little-endian")

    objects = JobQuerySet.as_manager()

    class Meta(Job.Meta):
        constraints = [
            *Job.Meta.constraints,
            models.UniqueConstraint(fields=["encoder", "text"], name="one_text_embedding_per_encoder"),
        ]

    def __str__(self) -> str:
        return f"{self.text!r} by {self.encoder}"


class Style(models.Model):
    """A way of captioning."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=80)
    description = models.TextField(blank=True)
    is_default = models.BooleanField(default=False, help_text="used where a request names no style")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-is_default", "slug")
        constraints = (
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_style"),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def active_version(self) -> MapperVersion | None:
        """The version in service: that of the newest promotion."""
        promotion = self.promotions.select_related("version").order_by("-pk").first()
        return promotion.version if promotion else None


class MapperVersion(models.Model):
    """One trained mapper of a style. Immutable but for notes on it."""

    class Origin(models.TextChoices):
        SHIPPED = "shipped"
        TRAINED = "trained"
        IMPORTED = "imported"

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField(editable=False)
    file = models.FileField(upload_to="mappers/", max_length=200)
    size = models.PositiveBigIntegerField(default=0, editable=False, help_text="of the file, in bytes")
    sha256 = models.CharField(max_length=64, validators=[RegexValidator(r"^[0-9a-f]{64}$")], editable=False)
    config = models.JSONField(default=dict, editable=False)
    encoder = models.CharField(max_length=200, blank=True, editable=False, help_text="the encoder it fits")
    language_model = models.CharField(max_length=200, blank=True, editable=False, help_text="the LM it fits")
    metrics = models.JSONField(default=dict, blank=True, editable=False)
    origin = models.CharField(max_length=10, choices=Origin, editable=False)
    load_error = models.TextField(blank=True, editable=False, help_text="why a worker could not load it")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("style", "-number")
        constraints = (models.UniqueConstraint(fields=["style", "number"], name="version_numbers_are_unique"),)

    def __str__(self) -> str:
        return f"{self.style.slug} v{self.number}"

    def copied_to(self, folder: Path) -> Path:
        """A copy of its file, the same byte for byte.

        Raises:
            ValueError: the stored file is another than was filed.
            OSError: the storage cannot give it, or the folder not take it.
        """
        path = folder / Path(self.file.name or "mapper").name
        with self.file.storage.open(str(self.file.name), "rb") as source, path.open("wb") as copy:
            while chunk := source.read(1 << 20):
                copy.write(chunk)
        if file_sha256(path) != self.sha256:
            raise ValueError(f"the stored file of {self} is damaged: its SHA-256 is another")
        return path


class Promotion(models.Model):
    """Who put which version in service, when and why. The newest is the active one; history is never rewritten."""

    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="promotions")
    version = models.ForeignKey(MapperVersion, on_delete=models.PROTECT, related_name="promotions")
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-pk",)
        indexes = (models.Index(fields=["style", "-id"], name="newest_promotion"),)

    def __str__(self) -> str:
        return f"{self.version} on {self.created_at:%Y-%m-%d %H:%M}"


class CaptionRequest(models.Model):
    """What one call asked for: one caption or many, with an address of its own."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    visitor = models.CharField(max_length=40, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    idempotency_scope = models.CharField(max_length=80, blank=True, help_text="whose the key is")
    idempotency_key = models.CharField(max_length=255, null=True)
    body_sha256 = models.CharField(max_length=64, blank=True)
    answer = models.JSONField(default=dict, help_text="what the call was answered; given again to the same key")

    class Meta:
        ordering = ("-created_at", "-id")
        constraints = (
            models.UniqueConstraint(
                fields=["idempotency_scope", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="idempotency_keys_are_unique",
            ),
        )
        indexes = (models.Index(fields=["owner", "-created_at"], name="request_of_owner"),)

    def __str__(self) -> str:
        return str(self.id)

    @property
    def status(self) -> str:
        """`queued`, `running` while anything is unfinished; then `succeeded`, or `failed` or `canceled` if any is."""
        statuses = {caption.status for caption in self.captions.all()}
        order = (Status.RUNNING, Status.QUEUED, Status.FAILED, Status.CANCELED)
        if Status.QUEUED in statuses and statuses & {Status.SUCCEEDED, Status.FAILED}:
            return Status.RUNNING
        return next((status for status in order if status in statuses), Status.SUCCEEDED)


class CaptionQuerySet(JobQuerySet["Caption"]):
    order = ("turn", "rank_at", "pk")


class Caption(Job):
    """A caption asked for, and its result."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.ForeignKey(CaptionRequest, on_delete=models.CASCADE, related_name="captions")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="captions")
    style = models.ForeignKey(Style, on_delete=models.PROTECT, related_name="captions", db_index=False)
    # The request's, once more: lists of a million captions are filtered and ordered by one index.
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    visitor = models.CharField(max_length=40, blank=True)
    flow = models.CharField(
        max_length=50, blank=True, db_default="", editable=False, help_text="among whose captions it takes its turn"
    )
    bulk = models.BooleanField(default=False, db_default=False, editable=False, help_text="lets others pass")
    turn = models.BigIntegerField(
        default=0, db_default=0, editable=False, help_text="the lower, the sooner it is claimed; see captioner.turns"
    )
    name = models.CharField(max_length=255, blank=True, help_text="the file's, as it was uploaded")
    # The order in which a request's captions were asked for; unknown of those from before it was kept.
    index = models.PositiveSmallIntegerField(null=True, help_text="which image of its request: files, ids, base64")
    place = models.PositiveSmallIntegerField(null=True, help_text="the style's place among those asked for")
    options = models.JSONField(default=dict, help_text="DecodingOptions")
    min_confidence = models.FloatField(null=True, help_text="of a caption less sure than that no words are kept")
    version = models.ForeignKey(MapperVersion, null=True, on_delete=models.PROTECT, related_name="captions")
    text = models.TextField(blank=True)
    confidence = ProbabilityField(null=True, help_text="estimated probability that it is right; null if unknown")
    log_probability = FiniteField(null=True, help_text="mean log-probability of a token; 0 at best")
    alternatives = models.JSONField(
        default=list, help_text='[{"text", "confidence", "log_probability"}], the next best first'
    )
    encode_ms = models.FloatField(null=True, help_text="0 where the embedding was there already")
    decode_ms = models.FloatField(null=True, help_text="of the whole batch that it was in")

    objects = CaptionQuerySet.as_manager()

    class Meta(Job.Meta):
        ordering = ("-created_at", "index", "place", "-id")
        indexes = [
            *Job.Meta.indexes,
            # Not of the queued ones alone: SQLite would rather sort what another index of the status gives it.
            models.Index(fields=["status", "turn", "rank_at", "id"], name="caption_turns"),
            models.Index(fields=["flow", "bulk", "turn"], condition=Q(status="queued"), name="caption_flows"),
            models.Index(fields=["-created_at", "-id"], name="caption_newest"),
            models.Index(fields=["owner", "-created_at", "-id"], name="caption_of_owner"),
            models.Index(fields=["visitor", "-created_at", "-id"], name="caption_of_visitor"),
            # All images that somebody's captions are of, from the index alone.
            models.Index(fields=["owner", "image"], name="caption_image_of_owner"),
            models.Index(fields=["visitor", "image"], name="caption_image_of_visitor"),
            # Ordered to the end: else a status or style that is rare is looked for in the whole table.
            models.Index(fields=["status", "-created_at", "-id"], name="caption_by_status"),
            models.Index(fields=["style", "-created_at", "-id"], name="caption_by_style"),
            models.Index(fields=["version", "-created_at", "-id"], name="caption_by_version"),
        ]

    def __str__(self) -> str:
        return self.text or f"{self.status} {self.id}"

    @property
    def correction(self) -> Correction | None:
        """The newest, if there is any. Lists fetch corrections together with their captions."""
        corrections = list(self.corrections.all())
        return corrections[-1] if corrections else None

    @property
    def best_text(self) -> str:
        """A person's correction, or what the model wrote."""
        correction = self.correction
        return correction.text if correction else self.text

    @property
    def shown_confidence(self) -> float | None:
        """The machine's, in words of its own: what a person wrote in their place has none."""
        return None if self.correction else self.confidence

    @property
    def unsure(self) -> bool:
        """Whether it is less likely to be right than the setting says; where nobody can tell, it is not."""
        return is_unsure(self.shown_confidence, settings.UNSURE_BELOW)

    @classmethod
    def doubtful(cls) -> Q:
        """The captions that are `unsure`."""
        corrected = Exists(Correction.objects.filter(caption=OuterRef("pk")))
        return Q(confidence__gte=0, confidence__lt=settings.UNSURE_BELOW) & ~Q(corrected)

    @property
    def withheld(self) -> dict[str, str] | None:
        """Code and sentence of why a finished caption has no words; None where nothing was withheld."""
        if self.status != Status.SUCCEEDED or not self._withholds(self.confidence):
            return None
        if self.confidence is None:
            return {
                "code": "unknown_confidence",
                "detail": "the models cannot tell how likely it is right, and a least confidence was asked for",
            }
        return {"code": "low_confidence", "detail": "its confidence is below the least that was asked for"}

    def kept(self, written: dict[str, Any]) -> dict[str, Any]:
        """What is kept of what a worker has `written`: no words, where these are less sure than the request wants."""
        return {**written, "text": "", "alternatives": []} if self._withholds(written["confidence"]) else written

    def _withholds(self, confidence: float | None) -> bool:
        least = self.min_confidence or 0.0
        return least > 0 and (confidence is None or confidence < least)


class DraftRequest(models.Model):
    """What an administrator has versions write: about some photos, to compare; or a style's captions, all anew."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    style = models.ForeignKey(
        Style, null=True, on_delete=models.CASCADE, related_name="rewritings", help_text="whose captions are replaced"
    )
    version = models.ForeignKey(
        MapperVersion, null=True, on_delete=models.CASCADE, related_name="+", help_text="which writes them anew"
    )
    # A style may have a million captions: workers look them up, the newest first, part by part.
    listing = models.BooleanField(default=False, help_text="there may be captions that are not queued yet")
    listed_to = models.DateTimeField(null=True, help_text="when the last caption queued was asked for")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ("-created_at", "-id")
        indexes = (models.Index(fields=["-created_at", "-id"], name="draft_request_newest"),)

    def __str__(self) -> str:
        return f"{self.style or 'comparison'}, {self.created_at:%Y-%m-%d %H:%M}"


class Draft(Job):
    """What one version, in service or not, writes about one image. No list of captions shows it; where it was written
    for a caption, that caption takes it over whole, when it is finished."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.ForeignKey(DraftRequest, on_delete=models.CASCADE, related_name="drafts")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="+")
    version = models.ForeignKey(MapperVersion, on_delete=models.CASCADE, related_name="drafts")
    caption = models.ForeignKey(
        Caption, null=True, on_delete=models.CASCADE, related_name="drafts", help_text="which takes the draft over"
    )
    options = models.JSONField(default=dict, help_text="DecodingOptions")
    text = models.TextField(blank=True)
    confidence = ProbabilityField(null=True, help_text="estimated probability that it is right; null if unknown")
    log_probability = FiniteField(null=True, help_text="mean log-probability of a token; 0 at best")
    prefix_words = models.JSONField(
        default=list, help_text="of each prefix vector, the nearest words of the vocabulary: [[[word, similarity]]]"
    )
    prefix = models.BinaryField(null=True, help_text="(K, D) float16, little-endian; of comparisons")

    objects = JobQuerySet.as_manager()

    class Meta(Job.Meta):
        constraints = [
            *Job.Meta.constraints,
            models.UniqueConstraint(
                fields=["caption"], condition=Q(status__in=("queued", "running")), name="one_draft_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return self.text or f"{self.status} {self.id}"

    def finish(self, at: datetime, written: dict[str, Any], **prefix: Any) -> None:
        """Record what a worker has `written`, in the caption too that was waiting for it. Call it in a transaction."""
        own = {name: written[name] for name in ("text", "confidence", "log_probability")}
        if self.succeed(at, **own, **prefix) and self.caption_id:
            waiting = Caption.objects.filter(pk=self.caption_id, status=Status.SUCCEEDED)
            if caption := waiting.first():
                waiting.update(**caption.kept(written))


class Correction(models.Model):
    """What a person wrote in place of a caption; the newest counts, the others are kept."""

    caption = models.ForeignKey(Caption, on_delete=models.CASCADE, related_name="corrections")
    text = models.TextField()
    author = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    considered_at = models.DateTimeField(
        null=True, editable=False, help_text="when it became an example to learn from, or was left out"
    )

    class Meta:
        ordering = ("pk",)
        indexes = (
            models.Index(fields=["caption"], condition=Q(considered_at=None), name="correction_open"),
            models.Index(fields=["-created_at", "-id"], name="correction_newest"),
        )

    def __str__(self) -> str:
        return self.text


class WebhookHost(models.Model):
    """A host that gave no answer lately: the circuit breaker of its deliveries. One that answers has no row."""

    host = models.CharField(max_length=300, unique=True)
    failures = models.PositiveIntegerField(default=0, help_text="one after the other")
    open_until = models.DateTimeField(help_text="until then nobody tries to reach it")
    error = models.TextField(blank=True)

    class Meta:
        ordering = ("-open_until",)

    def __str__(self) -> str:
        return self.host


class DeliveryQuerySet(JobQuerySet["WebhookDelivery"]):
    def ready(self, now: datetime) -> DeliveryQuerySet:
        """Deliveries whose time has come, of requests in which nothing is left to do, one of each host at a time.

        That a request is finished is looked up rather than announced: no way of finishing can forget to tell.
        """
        unfinished = Caption.objects.filter(request=OuterRef("request"), status__in=UNFINISHED)
        busy = WebhookDelivery.objects.filter(status=Status.RUNNING).exclude(host="").filter(host=OuterRef("host"))
        return super().ready(now).filter(~Exists(unfinished), ~Exists(busy), rank_at__lte=now)

    def to_steady_hosts(self) -> Self:
        """Those to hosts that have answered when they were last called, or were not yet."""
        return self.exclude(host__in=WebhookHost.objects.values("host"))

    def send_again(self, now: datetime, until: datetime, **changes: Any) -> int:
        """Queue deliveries anew, whatever became of them; not those that are being sent at this moment."""
        return self.exclude(status=Status.RUNNING).update(
            status=Status.QUEUED,
            rank_at=now,
            deadline_at=until,
            attempts=0,
            failed_tries=0,
            started_at=None,
            finished_at=None,
            error_code="",
            error_detail="",
            **changes,
        )


class WebhookDelivery(Job):
    """The message that tells a client that its request is finished; tried again with growing pauses."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    request = models.OneToOneField(CaptionRequest, on_delete=models.CASCADE, related_name="webhook")
    url = models.URLField(max_length=2000)
    host = models.CharField(max_length=300, blank=True, db_default="", editable=False)
    secret = models.CharField(max_length=100, help_text="whsec_ and the key in base64, which signs the message")
    previous_secret = models.CharField(
        max_length=100, blank=True, db_default="", help_text="signs it too, while the receiver changes secrets"
    )
    failed_tries = models.PositiveSmallIntegerField(default=0, db_default=0, editable=False)
    log = models.JSONField(default=list, editable=False, help_text="the tries of earlier releases; see DeliveryAttempt")

    objects = DeliveryQuerySet.as_manager()

    class Meta(Job.Meta):
        verbose_name_plural = "webhook deliveries"
        indexes = [
            *Job.Meta.indexes,
            models.Index(fields=["-created_at", "-id"], name="delivery_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="delivery_by_status"),
            models.Index(fields=["host", "status"], name="delivery_by_host"),
        ]

    def __str__(self) -> str:
        return f"{self.status}: {self.url}"

    @property
    def every_try(self) -> list[dict[str, Any]]:
        """What became of each try, the first one first: `at`, `status`, `error` and `ms`."""
        return [*self.log, *self.tries.values("at", "status", "error", "ms")]


class DeliveryAttempt(models.Model):
    """One try to deliver a message. It is written down before it is made: a worker that is lost leaves a trace."""

    delivery = models.ForeignKey(WebhookDelivery, on_delete=models.CASCADE, related_name="tries")
    at = models.DateTimeField()
    status = models.PositiveSmallIntegerField(null=True, help_text="of the answer")
    error = models.TextField(blank=True, default="there is no result: it is being made, or its worker was lost")
    ms = models.PositiveIntegerField(null=True, help_text="null while it is being made, or where its worker was lost")

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S}: {self.status or ''} {self.error}"


class Queue(models.Model):
    """A queue that can be paused: its workers finish what they hold and claim no more. One never paused has no row."""

    class Name(models.TextChoices):
        CAPTIONS = "captions"
        TRAINING = "training"

    name = models.CharField(max_length=20, choices=Name, unique=True)
    paused = models.BooleanField(default=False)
    reason = models.CharField(max_length=200, blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return f"{self.name}: {'paused' if self.paused else 'open'}"

    @classmethod
    def is_paused(cls, name: str) -> bool:
        return cls.objects.filter(name=name, paused=True).exists()


class Worker(models.Model):
    """A worker process and when it was last heard from."""

    name = models.CharField(max_length=100, unique=True)
    queue = models.CharField(max_length=40)
    device = models.CharField(max_length=40, blank=True)
    models_loaded = models.CharField(max_length=400, blank=True, help_text="identities of encoder and LM")
    encoder = models.CharField(max_length=200, blank=True, help_text="the encoder's identity")
    text_encoder = models.CharField(max_length=200, blank=True, help_text="that of its text half, where it has one")
    memory_mb = models.PositiveIntegerField(default=0)
    capacity = models.JSONField(default=dict, help_text="memory_mb of its device, and the sizes of its models")
    trouble = models.CharField(
        max_length=500, blank=True, db_default="", help_text="what it kept failing with, so that it has paused itself"
    )
    tries_again_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-seen_at",)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def captioning(cls) -> models.QuerySet[Worker]:
        """The caption workers that were heard from lately and have their models loaded."""
        lately = clock("default") - SILENCE
        return cls.objects.filter(queue__contains="captions", seen_at__gt=lately, models_loaded__gt="")


class AuditEntries(models.QuerySet["AuditEntry"]):
    """Entries can be read and added."""

    def update(self, **_: Any) -> int:
        raise TypeError("the audit log is never changed")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise TypeError("the audit log is never changed")


class AuditEntry(models.Model):
    """Something that somebody did who may do more than caption photos. It refers to no row, so that it outlives all."""

    class Action(models.TextChoices):
        PROMOTED = "promoted"
        DELETED = "deleted"
        PERMISSIONS = "permissions", "changed permissions"
        EXPORTED = "exported"
        IMPORTED = "imported"
        TRAINED = "trained", "started, stopped or resumed training"
        SERVICE = "service", "changed what is served"

    created_at = models.DateTimeField(default=timezone.now)
    who = models.CharField(max_length=150, blank=True, help_text="their user name then; empty: a command or a policy")
    user_id = models.BigIntegerField(null=True)
    address = models.CharField(max_length=45, blank=True, help_text="where they were")
    action = models.CharField(max_length=20, choices=Action)
    subject = models.CharField(max_length=200)
    detail = models.TextField(blank=True)

    objects = AuditEntries.as_manager()

    class Meta:
        ordering = ("-created_at", "-pk")
        verbose_name_plural = "audit log"
        indexes = (
            models.Index(fields=["-created_at", "-id"], name="audit_newest"),
            models.Index(fields=["action", "-created_at", "-id"], name="audit_by_action"),
        )

    def __str__(self) -> str:
        return f"{self.who or 'the server'} {self.get_action_display()}: {self.subject}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Add it.

        Raises:
            TypeError: it is there already.
        """
        if not self._state.adding:
            raise TypeError("the audit log is never changed")
        super().save(*args, **kwargs)

    def delete(self, *_: Any, **__: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("the audit log is never changed")
