from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("training", "0019_refused_runs"),
    ]

    operations = [
        migrations.AlterField(
            model_name="policy",
            name="metric",
            field=models.CharField(
                choices=[("CIDEr", "CIDEr"), ("Bleu_4", "BLEU-4"), ("ROUGE_L", "ROUGE-L"), ("METEOR", "METEOR")],
                default="CIDEr",
                max_length=10,
            ),
        ),
    ]
