"""The Celery application. Workers: `./run worker QUEUE` (captioner/management/commands/worker.py)."""

import os
from typing import Any

from celery import Celery
from kombu.transport import filesystem

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")

app = Celery("clipcap_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# A broker that is a folder can be away like any other. Workers then wait for it, where they would otherwise end.
# They also wait (ValueError) when they read a message that is not yet complete: they look for work anyway.
transport: Any = filesystem.Transport
transport.connection_errors = (*transport.connection_errors, OSError, ValueError)
