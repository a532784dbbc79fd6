"""The Celery application. Workers: `./run worker QUEUE` (captioner/management/commands/worker.py)."""

import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")

app = Celery("clipcap_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


class WholeMessages(filesystem.Channel):
    """Puts a message into the folder once it is complete: kombu writes it there, where a worker may read half of it."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]  # kombu has two names
        name = uuid.uuid4()
        part = Path(self.data_folder_out) / f"{name}.part"
        try:
            part.write_text(dumps(payload))  # type: ignore[no-untyped-call]
            part.rename(part.with_name(f"{round(time.monotonic() * 1000)}_{name}.{queue}.msg"))
        except OSError as error:
            raise ChannelError(f"the message cannot be put into {self.data_folder_out}") from error


transport: Any = filesystem.Transport
transport.Channel = WholeMessages
# A broker that is a folder can be away like any other. Workers then wait for it, where they would otherwise end, and do
# so when they read a table of exchanges that is being written (ValueError).
transport.connection_errors = (*transport.connection_errors, OSError, ValueError)
