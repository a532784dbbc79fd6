"""The Django project: settings, addresses, the Celery application."""

from clipcap_site.celery import app

__all__ = ["app"]
