from typing import Any

from django.db import migrations


def rename_permissions(apps: Any, name: str) -> None:
    """Django makes permissions where they are missing, but does not rename those that are there."""
    permissions = apps.get_model("auth", "Permission").objects
    for action in ("add", "change", "delete", "view"):
        permissions.filter(content_type__app_label="captioner", codename=f"{action}_draftrequest").update(
            name=f"Can {action} {name}"
        )


def forwards(apps: Any, _: Any) -> None:
    rename_permissions(apps, "comparison")


def backwards(apps: Any, _: Any) -> None:
    rename_permissions(apps, "draft request")


class Migration(migrations.Migration):

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("captioner", "0035_turns"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="draftrequest", options={"ordering": ("-created_at", "-id"), "verbose_name": "comparison"}
        ),
        migrations.RunPython(forwards, backwards),
    ]
