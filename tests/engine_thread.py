"""A worker's engine in a thread of the tests, where a whole worker process would take too long to start."""

from __future__ import annotations

import threading
from datetime import timedelta

from django.db import connection
from django.utils import timezone

from captioner.inference.engine import CaptionEngine
from captioner.models import Worker
from captioner.workers.worker_process import Engine


class EngineThread(threading.Thread):
    """Does what a worker process's engine does, until it is stopped."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine, self.stopping = engine, threading.Event()

    def run(self) -> None:
        """Work, or wait a moment."""
        while not self.stopping.is_set():
            if not self.engine.work():
                self.stopping.wait(0.02)
        connection.close()

    def stop(self) -> None:
        """End after the work in hand, if it was started at all."""
        self.stopping.set()
        if self.ident:
            self.join()


def heard_from(engine: CaptionEngine) -> None:
    """Let an engine's worker be one that was heard from, and will be for a day."""
    encoder = engine.captioner.encoder
    Worker.objects.create(
        name=engine.name,
        queue="captions",
        models_loaded="x",
        encoder=encoder.identity,
        text_encoder=encoder.text_identity or "",
        seen_at=timezone.now() + timedelta(days=1),
    )
