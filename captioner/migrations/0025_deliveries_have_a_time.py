import django.utils.timezone
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    """The database stays as it is: workers of the release before go on delivering beside its schema."""

    dependencies = [("captioner", "0024_defaults_of_the_database")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RemoveIndex("webhookdelivery", "webhookdelivery_ready"),
                migrations.RenameField("webhookdelivery", "rank_at", "not_before"),
                migrations.AlterField(
                    "webhookdelivery",
                    "not_before",
                    models.DateTimeField(
                        db_column="rank_at",
                        default=django.utils.timezone.now,
                        editable=False,
                        help_text="time of the next attempt",
                    ),
                ),
                migrations.AddIndex(
                    "webhookdelivery",
                    models.Index(
                        condition=Q(status="queued"), fields=["not_before", "id"], name="webhookdelivery_ready"
                    ),
                ),
            ]
        )
    ]
