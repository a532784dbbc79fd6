from typing import Any

from django.db import migrations


def hide(apps: Any, _: Any) -> None:
    """The ready groups are made once: one of before gets what a new one has. Who labels needs no list of workers, with
    their devices and memory."""
    for group in apps.get_model("auth", "Group").objects.filter(name="Labellers"):
        seen = group.permissions.filter(content_type__app_label="captioner", codename="view_worker")
        group.permissions.remove(*seen)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("training", "0015_who_sees_versions_sees_base_models"),
    ]

    operations = [migrations.RunPython(hide, migrations.RunPython.noop)]
