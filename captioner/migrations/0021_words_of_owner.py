from typing import Any

from django.db import migrations, models

NAME = "caption_words_of_owner"


def add(apps: Any, schema_editor: Any) -> None:
    """On SQLite, words are looked for in an index that holds the texts: in a fifth of the time that the table takes.

    PostgreSQL has no index of texts of any length that would serve here.
    """
    if schema_editor.connection.vendor == "sqlite":
        columns = '"owner_id", "created_at" DESC, "id" DESC, "text"'
        schema_editor.execute(f'CREATE INDEX "{NAME}" ON "captioner_caption" ({columns})')


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute(f'DROP INDEX "{NAME}"')


class Migration(migrations.Migration):
    dependencies = [("captioner", "0020_audit_log")]
    operations = [
        migrations.AlterField(
            model_name="caption",
            name="turn",
            field=models.BigIntegerField(
                db_default=0,
                default=0,
                editable=False,
                help_text="the lower, the sooner it is claimed; see captioner.jobs.turns",
            ),
        ),
        migrations.RunPython(add, remove),
    ]
