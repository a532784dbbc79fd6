"""Versions say what embeddings they were trained on: files of the authors' code, imported before that was asked.

Such a file is stored as it came and says nothing itself, and what workers take it for depends on its kind: a Transformer
for trained on embeddings divided by their norm. Earlier releases filed the contrary. Nothing but the row has to change.
"""

from django.db import migrations

TRAINED_ON = {
    "transformer": (True, "embeddings normalized to unit length (guessed)"),
    "mlp": (False, "embeddings as the encoder gives them (guessed)"),
}


def versions(apps):
    return apps.get_model("captioner", "MapperVersion").objects.filter(file__endswith=".pt", encoder="")


def say(apps, schema_editor):
    for version in versions(apps):
        if version.config.get("kind") in TRAINED_ON and "trained_on" not in version.config:
            normalize, words = TRAINED_ON[version.config["kind"]]
            version.config |= {"normalize": normalize, "trained_on": words}
            version.save(update_fields=["config"])


def unsay(apps, schema_editor):
    for version in versions(apps):
        if version.config.pop("trained_on", None):
            version.config["normalize"] = False
            version.save(update_fields=["config"])


class Migration(migrations.Migration):
    dependencies = [("captioner", "0017_failures_of_rows")]
    operations = [migrations.RunPython(say, unsay)]
