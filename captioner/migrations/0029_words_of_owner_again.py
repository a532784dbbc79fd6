from typing import Any

from django.db import migrations

NAME = "caption_words_of_owner"


def add(apps: Any, schema_editor: Any) -> None:
    """SQLite makes a table anew to change it, and keeps only the indexes that models declare: this one (0021) was lost."""
    if schema_editor.connection.vendor == "sqlite":
        columns = '"owner_id", "created_at" DESC, "id" DESC, "text"'
        schema_editor.execute(f'CREATE INDEX IF NOT EXISTS "{NAME}" ON "captioner_caption" ({columns})')


class Migration(migrations.Migration):
    dependencies = [("captioner", "0028_labelled_captions")]
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
