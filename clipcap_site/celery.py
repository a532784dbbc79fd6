"""The Celery application. Workers: `./run worker QUEUE` (captioner/management/commands/worker.py)."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")

app = Celery("clipcap_site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
