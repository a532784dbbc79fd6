from django.db import migrations


class Migration(migrations.Migration):
    """Training's migration that takes over what the column holds declares that it runs before this one. No release
    has the column: it came after 0.2.0."""

    dependencies = [
        ("captioner", "0037_identities_as_reported"),
    ]

    operations = [
        migrations.RemoveField(model_name="basemodels", name="refusals"),
    ]
