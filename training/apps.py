from django.apps import AppConfig
from django.db.models.signals import post_migrate


class TrainingConfig(AppConfig):
    name = "training"
    verbose_name = "Training"

    def ready(self) -> None:
        """Register the system checks and the queue, answer what captioner asks other apps, and have the groups made
        when the permissions of this app, the last that they hold, are there."""
        from captioner.jobs.registry import RegisteredQueue, register
        from captioner.services import versions, votes
        from training import checks  # noqa: F401
        from training.permissions import make_groups
        from training.services import held_out_captions, promote_preferred

        register(RegisteredQueue("training", "training.wake", "training.worker.worker_process"))
        versions.held_out_captions.append(held_out_captions)
        votes.after_polls.append(promote_preferred)
        post_migrate.connect(make_groups, sender=self)
