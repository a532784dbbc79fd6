"""What was called confidence is the log-probability: stored numbers move to where that is kept now."""

from django.db import migrations
from django.db.models import F

ALTERNATIVES = {
    "sqlite": """
        UPDATE captioner_caption SET alternatives = (
            SELECT json_group_array(json_object(
                'text', json_extract(value, '$.text'),
                'confidence', NULL,
                'log_probability', json_extract(value, '$.confidence')
            )) FROM json_each(captioner_caption.alternatives)
        ) WHERE alternatives <> '[]'
    """,
    "postgresql": """
        UPDATE captioner_caption SET alternatives = (
            SELECT jsonb_agg(jsonb_build_object(
                'text', value -> 'text',
                'confidence', NULL,
                'log_probability', value -> 'confidence'
            ) ORDER BY place) FROM jsonb_array_elements(alternatives) WITH ORDINALITY AS others (value, place)
        ) WHERE alternatives <> '[]'
    """,
}


def move(apps, schema_editor):
    for name in ("Caption", "Draft"):
        rows = apps.get_model("captioner", name).objects.filter(confidence__isnull=False)
        rows.update(log_probability=F("confidence"), confidence=None)
    schema_editor.execute(ALTERNATIVES[schema_editor.connection.vendor])


def move_back(apps, schema_editor):
    for name in ("Caption", "Draft"):
        apps.get_model("captioner", name).objects.update(confidence=F("log_probability"))


class Migration(migrations.Migration):
    dependencies = [("captioner", "0011_confidence")]
    operations = [migrations.RunPython(move, move_back)]
