"""A caption worker, with the threads around its engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, Draft, TextEmbedding, WebhookDelivery
from captioner.services import list_rewritings
from captioner.workers import webhook_delivery
from captioner.workers.worker_process import WorkerProcess

DELIVERY_THREADS = 4  # so that an address which is slow to answer keeps no others waiting


def worker_process(name: str) -> WorkerProcess:
    """Load the models and put the threads around an engine.

    Raises:
        ValueError: a model cannot be loaded; the message names the cause and the remedy.
    """
    engine = CaptionEngine.load(name)
    chores: dict[str, Callable[[], object]] = {
        f"webhook delivery {n}": webhook_delivery.deliver_next for n in range(2, DELIVERY_THREADS + 1)
    }
    chores["webhook delivery 1"] = partial(webhook_delivery.deliver_next, steady=True)
    chores["leases of webhook deliveries"] = webhook_delivery.renew
    chores["rewritings"] = list_rewritings
    return WorkerProcess(engine, "captions", chores, (Caption, Draft, TextEmbedding, WebhookDelivery))
