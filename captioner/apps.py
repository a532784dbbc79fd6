from pathlib import Path

from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_migrate, pre_delete


class CaptionerConfig(AppConfig):
    name = "captioner"
    verbose_name = "Captions"

    def ready(self) -> None:
        """Register the system checks and the queue, have changes of permissions recorded, a user's captions locked
        before they are deleted and rows counted after migrations, and make the folders of a broker that is one: it does
        not make them itself."""
        from django.contrib.auth.models import User

        from captioner import audit, checks  # noqa: F401
        from captioner.jobs.registry import RegisteredQueue, register
        from captioner.services.retention import count_rows_again, lock_captions_of

        audit.watch_permissions()
        pre_delete.connect(lock_captions_of, sender=User, dispatch_uid="captions of a user")
        post_migrate.connect(count_rows_again, sender=self)
        register(RegisteredQueue("captions", "captioner.wake", "captioner.inference.start.worker_process"))

        options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
        for name in ("data_folder_in", "control_folder"):
            if name in options:
                try:
                    Path(options[name]).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise ImproperlyConfigured(
                        f"{options[name]} cannot be created ({error.strerror}); set CLIPCAP_HOME to a writable folder"
                    ) from error
