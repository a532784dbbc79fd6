import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("training", "0016_labellers_see_no_workers"),
    ]

    operations = [
        migrations.AlterField(
            model_name="rejectedrow",
            name="batch",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="rejected", to="training.import"
            ),
        ),
    ]
