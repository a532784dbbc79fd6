"""A caption worker, with the threads around its engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from captioner.inference.engine import CaptionEngine
from captioner.jobs.worker_process import WorkerProcess
from captioner.models import Caption, Draft, TextEmbedding, WebhookDelivery
from captioner.services import list_rewritings
from captioner.webhooks import delivery as webhook_delivery

DELIVERY_THREADS = 4  # so that an address which is slow to answer keeps no others waiting


def start(name: str) -> WorkerProcess:
    """Load the models and start this process's threads.

    Raises:
        SystemExit: a model cannot be loaded; the reason is printed.
    """
    try:
        engine = CaptionEngine.load(name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    chores: dict[str, Callable[[], object]] = {
        f"webhook delivery {n}": webhook_delivery.deliver_next for n in range(2, DELIVERY_THREADS + 1)
    }
    chores["webhook delivery 1"] = partial(webhook_delivery.deliver_next, steady=True)
    chores["leases of webhook deliveries"] = webhook_delivery.renew
    chores["rewritings"] = list_rewritings
    process = WorkerProcess(engine, "captions", chores, (Caption, Draft, TextEmbedding, WebhookDelivery))
    process.start()
    return process
