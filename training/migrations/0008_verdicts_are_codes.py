from typing import Any

from django.db import migrations, models

SENTENCE, CODE = "no clear difference", "unclear"


def written_as(old: str, new: str) -> Any:
    """Rewrites a verdict, in runs and in what versions keep of their runs."""

    def rewrite(apps: Any, schema_editor: Any) -> None:
        apps.get_model("training", "TrainingRun").objects.filter(verdict=old).update(verdict=new)
        versions = apps.get_model("captioner", "MapperVersion").objects.filter(metrics__verdict=old)
        for version in versions.iterator():
            version.metrics["verdict"] = new
            version.save(update_fields=["metrics"])

    return rewrite


class Migration(migrations.Migration):
    dependencies = [
        ("training", "0007_failures_of_rows"),
        ("captioner", "0017_failures_of_rows"),
    ]
    operations = [
        migrations.AlterField(
            model_name="trainingrun",
            name="verdict",
            field=models.CharField(
                blank=True,
                choices=[
                    ("better", "Better"),
                    ("unclear", "Unclear"),
                    ("worse", "Worse"),
                    ("first", "first version"),
                ],
                max_length=20,
            ),
        ),
        migrations.RunPython(written_as(SENTENCE, CODE), written_as(CODE, SENTENCE)),
    ]
