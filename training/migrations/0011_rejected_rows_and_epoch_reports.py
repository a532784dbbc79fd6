from typing import Any

from django.db import migrations

RENAMED = (("refused row", "rejected row"), ("checkpoint", "epoch report"))


def rename_permissions(apps: Any, old: str, new: str) -> None:
    """Django renames a model's content type and leaves its permissions; what groups and people hold must stay."""
    permissions = apps.get_model("auth", "Permission").objects.filter(content_type__app_label="training")
    for action in ("add", "change", "delete", "view"):
        permissions.filter(codename=f"{action}_{old.replace(' ', '')}").update(
            codename=f"{action}_{new.replace(' ', '')}", name=f"Can {action} {new}"
        )


def forwards(apps: Any, _: Any) -> None:
    for old, new in RENAMED:
        rename_permissions(apps, old, new)


def backwards(apps: Any, _: Any) -> None:
    for old, new in RENAMED:
        rename_permissions(apps, new, old)


class Migration(migrations.Migration):
    """The tables keep their names, and so need no change: workers of the release before go on writing to them."""

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("training", "0010_defaults_of_the_database"),
    ]

    operations = [
        migrations.AlterModelTable("refusedrow", "training_refusedrow"),
        migrations.AlterModelTable("checkpoint", "training_checkpoint"),
        migrations.RenameModel("RefusedRow", "RejectedRow"),
        migrations.RenameModel("Checkpoint", "EpochReport"),
        migrations.RunPython(forwards, backwards),
    ]
