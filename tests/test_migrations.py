"""Migrations that move data, on both databases."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import FieldDoesNotExist
from django.core.management import call_command
from django.db import connection
from django.db.migrations import AddField, CreateModel
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from tests.servers import PostgreSQL, default_database

Migrate = Callable[[str, str], Any]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL | None]:
    """A PostgreSQL, or none where databases are SQLite's files."""
    if request.param == "sqlite":
        yield None
    else:
        with PostgreSQL() as server:
            yield server


class Databases:
    """Databases that are migrated as far as tests begin. Each is a copy of the one that came closest, migrated on:
    otherwise, every test would run all migrations."""

    def __init__(self, server: PostgreSQL | None, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.made: dict[str, frozenset[tuple[str, str]]] = {}  # the migrations that were run, by name

    def at(self, app: str, name: str, copy: str) -> str:
        """The address of a new database, called `copy`, that is migrated as far as `name`, with what that needs."""
        wanted = frozenset(MigrationLoader(None).graph.forwards_plan((app, name)))
        if wanted not in self.made.values():
            closest = max((made for made in self.made if self.made[made] < wanted), key=self._steps, default="")
            with default_database(self._create(name, closest)):
                call_command("migrate", app, name, verbosity=0)
            self.made[name] = wanted
        return self._create(copy, next(made for made in self.made if self.made[made] == wanted))

    def _steps(self, made: str) -> int:
        return len(self.made[made])

    def _create(self, name: str, like: str) -> str:
        if self.server:
            return self.server.create_database(name, like or "template1")
        if like:
            shutil.copy(self.folder / like, self.folder / name)
        return f"sqlite:///{self.folder / name}"


@pytest.fixture(scope="module")
def databases(server: PostgreSQL | None, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    return Databases(server, tmp_path_factory.mktemp("databases"))


@pytest.fixture
def begin_at(databases: Databases, tmp_path: Path, django_db_blocker: Any) -> Iterator[Migrate]:
    """Gives a test a database of its own, migrated as far as a name; returns the models as they are then."""
    with ExitStack() as resources:

        def begin(app: str, name: str) -> Any:
            resources.enter_context(default_database(databases.at(app, name, tmp_path.name)))
            return MigrationExecutor(connection).loader.project_state([(app, name)]).apps

        resources.enter_context(django_db_blocker.unblock())
        yield begin


def migrate(app: str, name: str) -> Any:
    """Migrate an app as far as `name`; returns the models as they are then."""
    call_command("migrate", app, name, verbosity=0)
    return MigrationExecutor(connection).loader.project_state([(app, name)]).apps


def test_numbers_that_were_called_confidence_become_log_probabilities(begin_at: Migrate) -> None:
    apps = begin_at("captioner", "0009_rewritings_listed")
    now = timezone.now()
    style = apps.get_model("captioner", "Style").objects.create(slug="factual")
    image = apps.get_model("captioner", "Image").objects.create(sha256="0" * 64, width=1, height=1, size=1)
    caption = {
        "request": apps.get_model("captioner", "CaptionRequest").objects.create(),
        "image": image,
        "style": style,
        "deadline_at": now,
    }
    others = [{"text": 'a "wolf"', "confidence": -0.5}, {"text": "", "confidence": -0.123456789012345}]
    done = apps.get_model("captioner", "Caption").objects.create(
        **caption, status="succeeded", finished_at=now, text="a dog", confidence=-0.25, alternatives=others
    )
    queued = apps.get_model("captioner", "Caption").objects.create(**caption)
    version = apps.get_model("captioner", "MapperVersion").objects.create(style=style, number=1, origin="shipped")
    draft = apps.get_model("captioner", "Draft").objects.create(
        request=apps.get_model("captioner", "DraftRequest").objects.create(),
        image=image,
        version=version,
        deadline_at=now,
        confidence=-1.0,
    )

    apps = migrate("captioner", "0012_log_probabilities")
    captions, drafts = apps.get_model("captioner", "Caption").objects, apps.get_model("captioner", "Draft").objects
    found = captions.get(pk=done.pk)
    assert (found.confidence, found.log_probability) == (None, -0.25)
    assert found.alternatives == [
        {"text": other["text"], "confidence": None, "log_probability": other["confidence"]} for other in others
    ]
    assert (found.index, found.place, found.min_confidence) == (None, None, None)
    found = captions.get(pk=queued.pk)
    assert (found.confidence, found.log_probability, found.alternatives) == (None, None, [])
    assert (drafts.get().confidence, drafts.get(pk=draft.pk).log_probability) == (None, -1.0)

    apps = migrate("captioner", "0010_order_of_captions")
    assert apps.get_model("captioner", "Caption").objects.get(pk=done.pk).confidence == -0.25


def test_mappers_of_the_authors_that_were_imported_before_say_how_workers_take_them(begin_at: Migrate) -> None:
    apps = begin_at("captioner", "0017_failures_of_rows")
    style = apps.get_model("captioner", "Style").objects.create(slug="factual")
    filed = {
        1: ("mappers/a.pt", "", {"kind": "transformer", "normalize": False}),
        2: ("mappers/b.pt", "", {"kind": "mlp", "normalize": False}),
        3: ("mappers/c.safetensors", "", {"kind": "transformer", "normalize": False}),
        4: ("mappers/d.pt", "ViT-B-32/openai", {"kind": "transformer", "normalize": False}),  # ours, by another name
    }
    for number, (file, encoder, config) in filed.items():
        apps.get_model("captioner", "MapperVersion").objects.create(
            style=style, number=number, file=file, encoder=encoder, config=config, origin="imported"
        )

    def configs(apps: Any) -> dict[int, Any]:
        return dict(apps.get_model("captioner", "MapperVersion").objects.values_list("number", "config"))

    before = {number: config for number, (_, _, config) in filed.items()}
    after = {
        1: {"kind": "transformer", "normalize": True, "trained_on": "embeddings normalized to unit length (guessed)"},
        2: {"kind": "mlp", "normalize": False, "trained_on": "embeddings as the encoder gives them (guessed)"},
    }
    assert configs(migrate("captioner", "0018_how_mappers_were_trained")) == before | after
    assert configs(migrate("captioner", "0017_failures_of_rows")) == before
    assert configs(migrate("captioner", "0018_how_mappers_were_trained")) == before | after


@pytest.mark.parametrize("name", ["transformer_k10_d512", "mlp_k10_d512"])
def test_what_is_said_of_them_is_what_they_are_read_as(name: str) -> None:
    from clipcap.checkpoint import load_mapper

    migration = import_module("captioner.migrations.0018_how_mappers_were_trained")
    (path,) = (Path(__file__).parent / "data/original" / name).glob("*.pt")
    config = load_mapper(path).described()["config"]
    assert migration.TRAINED_ON[config["kind"]] == (config["normalize"], config["trained_on"])


def test_renamed_models_keep_their_rows_and_who_may_see_them(begin_at: Migrate) -> None:
    apps = begin_at("training", "0010_defaults_of_the_database")
    style = apps.get_model("captioner", "Style").objects.create(slug="factual")
    batch = apps.get_model("training", "Import").objects.create(style=style, deadline_at=timezone.now())
    apps.get_model("training", "RefusedRow").objects.create(batch=batch, file="a.csv", line=3, reason="no caption")
    types, permissions = apps.get_model("contenttypes", "ContentType"), apps.get_model("auth", "Permission").objects
    for model in ("refusedrow", "checkpoint"):
        of, _ = types.objects.get_or_create(app_label="training", model=model)
        permissions.get_or_create(content_type=of, codename=f"view_{model}", defaults={"name": f"Can view {model}"})
    group = apps.get_model("auth", "Group").objects.create(name="Viewers of old")
    group.permissions.set(permissions.filter(codename__in=("view_refusedrow", "view_checkpoint")))

    def held(apps: Any) -> set[tuple[str, str]]:
        found = apps.get_model("auth", "Group").objects.get(name="Viewers of old").permissions
        return set(found.values_list("codename", "content_type__model"))

    apps = migrate("training", "0011_rejected_rows_and_epoch_reports")
    assert apps.get_model("training", "RejectedRow").objects.get().line == 3
    assert held(apps) == {("view_rejectedrow", "rejectedrow"), ("view_epochreport", "epochreport")}

    apps = migrate("training", "0010_defaults_of_the_database")
    assert apps.get_model("training", "RefusedRow").objects.get().line == 3
    assert held(apps) == {("view_refusedrow", "refusedrow"), ("view_checkpoint", "checkpoint")}


def test_groups_that_may_see_versions_may_see_base_models(begin_at: Migrate) -> None:
    apps = begin_at("training", "0014_base_models_of_runs")
    types, permissions = apps.get_model("contenttypes", "ContentType"), apps.get_model("auth", "Permission").objects
    groups = apps.get_model("auth", "Group").objects
    of, _ = types.objects.get_or_create(app_label="captioner", model="mapperversion")
    view, _ = permissions.get_or_create(content_type=of, codename="view_mapperversion", defaults={"name": "Can view"})
    groups.create(name="Viewers of old").permissions.add(view)
    groups.create(name="Nobody")

    apps = migrate("training", "0015_who_sees_versions_sees_base_models")
    seen = apps.get_model("auth", "Group").objects.filter(permissions__codename="view_basemodels")
    assert "Viewers of old" in seen.values_list("name", flat=True)
    assert "Nobody" not in seen.values_list("name", flat=True)


def test_labellers_of_before_see_workers_no_longer(begin_at: Migrate) -> None:
    apps = begin_at("training", "0015_who_sees_versions_sees_base_models")
    call_command("migrate", verbosity=0)  # makes the permissions and the groups
    permissions, groups = apps.get_model("auth", "Permission").objects, apps.get_model("auth", "Group").objects
    migrate("training", "0015_who_sees_versions_sees_base_models")
    seen = permissions.filter(codename__in=("view_worker", "view_caption"))
    for name in ("Viewers", "Labellers"):
        groups.get(name=name).permissions.set(seen)
    migrate("training", "0016_labellers_see_no_workers")
    found = {name: groups.get(name=name).permissions.count() for name in ("Viewers", "Labellers")}
    assert found == {"Viewers": 2, "Labellers": 1}
    assert groups.get(name="Labellers").permissions.get().codename == "view_caption"


def test_why_runs_were_refused_moves_into_a_table_of_its_own_and_back(begin_at: Migrate) -> None:
    begin_at("training", "0018_reports_of_runs")
    apps = migrate("captioner", "0037_identities_as_reported")
    for slug in ("factual", "romantic"):
        apps.get_model("captioner", "Style").objects.create(slug=slug)
    said = {"romantic": "it has too few examples", "gone": "of a style that was deleted"}
    apps.get_model("captioner", "BaseModels").objects.create(encoder_source="a", refusals=said)
    apps.get_model("captioner", "BaseModels").objects.create(encoder_source="b")

    migrate("captioner", "0038_refusals_move")
    apps = MigrationExecutor(connection).loader.project_state().apps
    rows = apps.get_model("training", "RefusedRun").objects
    assert list(rows.values_list("base_models__encoder_source", "style__slug", "detail")) == [
        ("a", "romantic", "it has too few examples")
    ]

    migrate("training", "0018_reports_of_runs")
    apps = MigrationExecutor(connection).loader.project_state([("captioner", "0037_identities_as_reported")]).apps
    kept = dict(apps.get_model("captioner", "BaseModels").objects.values_list("encoder_source", "refusals"))
    assert kept == {"a": {"romantic": "it has too few examples"}, "b": {}}


def test_what_sqlite_knew_of_a_table_that_is_made_again_is_counted_again(
    server: PostgreSQL | None, begin_at: Migrate
) -> None:
    if server:  # PostgreSQL counts by itself
        return
    apps = begin_at("captioner", "0028_labelled_captions")
    apps.get_model("captioner", "Image").objects.create(sha256="0" * 64, width=1, height=1, size=1)
    migrate("captioner", "0029_unfinished_of_owner")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'captioner_image'")
        assert cursor.fetchone()[0] > 0


def test_columns_that_were_added_since_have_a_default_of_the_database() -> None:
    """So that programs of the previous release, which know nothing of a column, go on writing beside the new schema."""
    loader = MigrationLoader(None)
    now = loader.project_state().apps
    without = []
    for (app, name), migration in sorted(loader.disk_migrations.items()):
        if app not in ("accounts", "captioner", "training"):
            continue
        made = {operation.name_lower for operation in migration.operations if isinstance(operation, CreateModel)}
        for operation in migration.operations:
            if not isinstance(operation, AddField) or operation.model_name_lower in made:
                continue
            try:
                column = now.get_model(app, operation.model_name)._meta.get_field(operation.name)
            except (LookupError, FieldDoesNotExist):
                continue  # renamed or gone since
            if not (column.null or column.many_to_many or column.has_db_default()):
                without.append(f"{app}.{name}: {operation.model_name}.{operation.name}")
    assert without == []
