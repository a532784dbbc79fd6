import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("training", "0017_rejected_rows_of_imports"),
    ]

    operations = [
        migrations.AlterField(
            model_name="epochreport",
            name="run",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="reports", to="training.trainingrun"
            ),
        ),
    ]
