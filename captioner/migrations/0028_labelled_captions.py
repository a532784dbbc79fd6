from django.db import migrations
from django.db.models import Exists, OuterRef


def mark(apps, schema_editor):
    """Mark the captions that people have corrected."""
    rows = schema_editor.connection.alias
    corrections = apps.get_model('captioner', 'Correction').objects.using(rows).filter(caption=OuterRef('pk'))
    apps.get_model('captioner', 'Caption').objects.using(rows).filter(Exists(corrections)).update(labelled=True)


class Migration(migrations.Migration):

    dependencies = [
        ('captioner', '0027_labelling'),
    ]

    operations = [
        migrations.RunPython(mark, migrations.RunPython.noop, elidable=True),
    ]
