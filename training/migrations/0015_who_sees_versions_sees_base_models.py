from typing import Any

from django.db import migrations


def let_see(apps: Any, _: Any) -> None:
    """The ready groups are made once: those of before base models were on record get what new ones have from the
    beginning. Whether a group may see versions is what says that it may see these."""
    groups = apps.get_model("auth", "Group").objects.filter(
        permissions__content_type__app_label="captioner", permissions__codename="view_mapperversion"
    )
    for group in groups:
        kind, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
            app_label="captioner", model="basemodels"
        )
        permission, _ = apps.get_model("auth", "Permission").objects.get_or_create(
            content_type=kind, codename="view_basemodels", defaults={"name": "Can view base models"}
        )
        group.permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("captioner", "0034_base_models"),
        ("training", "0014_base_models_of_runs"),
    ]

    operations = [migrations.RunPython(let_see, migrations.RunPython.noop)]
