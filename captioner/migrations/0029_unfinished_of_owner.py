from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

NAME = "caption_words_of_owner"


def add(apps: Any, schema_editor: Any) -> None:
    """SQLite makes a table anew to change it, and keeps only the indexes that models declare: this one (0021) was lost."""
    if schema_editor.connection.vendor == "sqlite":
        columns = '"owner_id", "created_at" DESC, "id" DESC, "text"'
        schema_editor.execute(f'CREATE INDEX IF NOT EXISTS "{NAME}" ON "captioner_caption" ({columns})')


class Migration(migrations.Migration):
    dependencies = [
        ("captioner", "0028_labelled_captions"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.AlterField(
            model_name="caption",
            name="owner",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddIndex(
            model_name="caption",
            index=models.Index(fields=["owner", "status"], name="caption_of_owner_by_status"),
        ),
        migrations.RunPython(add, migrations.RunPython.noop),
    ]
