from typing import Any

from django.db import migrations

NAME = "caption_newest_words"


def add(apps: Any, schema_editor: Any) -> None:
    """On SQLite, who sees all captions has words looked for in an index that holds the texts too, as 0021 does for one
    owner: in a third of the time that the table takes."""
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute(f'CREATE INDEX "{NAME}" ON "captioner_caption" ("created_at" DESC, "id" DESC, "text")')


def remove(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "sqlite":
        schema_editor.execute(f'DROP INDEX "{NAME}"')


class Migration(migrations.Migration):
    dependencies = [("captioner", "0038_refusals_move")]
    operations = [migrations.RunPython(add, remove)]
