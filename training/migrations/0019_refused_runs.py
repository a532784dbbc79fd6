from typing import Any

import django.db.models.deletion
from django.db import migrations, models


def take_over(apps: Any, schema_editor: Any) -> None:
    """What was a column of captioner becomes rows here."""
    refused, styles = apps.get_model("training", "RefusedRun"), apps.get_model("captioner", "Style").objects
    for base in apps.get_model("captioner", "BaseModels").objects.all():
        for style in styles.filter(slug__in=base.refusals):
            refused.objects.create(base_models=base, style=style, detail=base.refusals[style.slug])


def give_back(apps: Any, schema_editor: Any) -> None:
    """The rows become the column again."""
    for base in apps.get_model("captioner", "BaseModels").objects.all():
        base.refusals = dict(base.refused_runs.values_list("style__slug", "detail"))
        base.save()


class Migration(migrations.Migration):

    dependencies = [
        ("captioner", "0037_identities_as_reported"),
        ("training", "0018_reports_of_runs"),
    ]
    run_before = [("captioner", "0038_refusals_move")]

    operations = [
        migrations.CreateModel(
            name="RefusedRun",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("detail", models.TextField()),
                (
                    "base_models",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="refused_runs",
                        to="captioner.basemodels",
                    ),
                ),
                (
                    "style",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="refused_runs", to="captioner.style"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("base_models", "style"), name="refused_runs_are_unique")
                ],
            },
        ),
        migrations.RunPython(take_over, give_back),
    ]
