"""The models: photos, styles and versions, captions, deliveries, workers; and `Viewer`: who may see what."""

from captioner.models.albums import Album
from captioner.models.audit import (
    AuditEntries,
    AuditEntry,
)
from captioner.models.base_models import (
    BaseModels,
    CutOver,
    belonging_to,
)
from captioner.models.captions import (
    Caption,
    CaptionQuerySet,
    CaptionRequest,
    Correction,
    Skip,
)
from captioner.models.drafts import (
    Draft,
    DraftRequest,
)
from captioner.models.fields import (
    FiniteField,
    ProbabilityField,
    probability,
)
from captioner.models.files import DiscardedFile
from captioner.models.images import (
    Embedding,
    Image,
    TextEmbedding,
)
from captioner.models.styles import (
    MapperVersion,
    Promotion,
    Style,
)
from captioner.models.viewer import (
    EVERYBODY,
    EXAMPLES,
    Viewer,
)
from captioner.models.votes import (
    Poll,
    Vote,
)
from captioner.models.webhooks import (
    DeliveryAttempt,
    DeliveryQuerySet,
    WebhookDelivery,
    WebhookHost,
)
from captioner.models.workers import (
    SILENCE,
    Queue,
    Worker,
)

__all__ = [
    "EVERYBODY",
    "EXAMPLES",
    "SILENCE",
    "Album",
    "AuditEntries",
    "AuditEntry",
    "BaseModels",
    "Caption",
    "CaptionQuerySet",
    "CaptionRequest",
    "Correction",
    "CutOver",
    "DeliveryAttempt",
    "DeliveryQuerySet",
    "DiscardedFile",
    "Draft",
    "DraftRequest",
    "Embedding",
    "FiniteField",
    "Image",
    "MapperVersion",
    "Poll",
    "ProbabilityField",
    "Promotion",
    "Queue",
    "Skip",
    "Style",
    "TextEmbedding",
    "Viewer",
    "Vote",
    "WebhookDelivery",
    "WebhookHost",
    "Worker",
    "belonging_to",
    "probability",
]
