"""Small real models made on the spot, and the service on them: a database, a broker and files of the tests' own."""

import clipcap.torchvision_schemas  # noqa: F401 (repairs torchvision before transformers is imported)

# isort: split
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import hypothesis
import open_clip
import pytest
import torch
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection, transaction
from django.test import override_settings
from playwright.sync_api import Browser, sync_playwright
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captioner import services
from captioner.inference.embeddings import EmbeddingAhead
from captioner.inference.engine import CaptionEngine
from captioner.models import MapperVersion, Style, Viewer
from captioner.workers.breaker import Breaker
from clipcap.captioner import Captioner
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.encoder import Encoder
from clipcap.fast_tower import first
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig, build_mapper
from clipcap_site.cache import FailOpen
from tests.servers import PostgreSQL, default_database, once

HOME = django_settings.HOME  # of this process
ROOT = Path(__file__).parent.parent

# The others are slow on purpose.
django_settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Machines are shared: how long an example takes says nothing.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_lm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two small layers with random weights, spread so that its choices are clear, and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-lm"
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(alphabet, start=1)}
    vocabulary |= {f"<unused{i}>": i for i in range(len(vocabulary), 300)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300,
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_lm_dir: Path) -> LanguageModel:
    """The model of `tiny_lm_dir`, loaded through the same door as any other."""
    return LanguageModel.load(f"local-dir:{tiny_lm_dir}", device="cpu")


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model of one small layer with random weights: 224 x 224 pixels -> 16 numbers."""
    return _clip_dir(tmp_path_factory, seed=0, context_length=8, vocab_size=8)


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a text tower that open_clip's tokenizer fits: text -> 16 numbers."""
    return _clip_dir(tmp_path_factory, seed=1, context_length=20, vocab_size=49408)


def _clip_dir(tmp_path_factory: pytest.TempPathFactory, seed: int, **text: int) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": {**text, "width": 8, "heads": 1, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(seed)
    clip = open_clip.create_model(f"local-dir:{folder}")
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def captioner(tiny_encoder_dir: Path, tiny_lm: LanguageModel) -> Captioner:
    """The two small models together."""
    return Captioner(Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu"), tiny_lm)


@pytest.fixture
def tiny_models(tiny_encoder_dir: Path, tiny_lm_dir: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapper files are looked at beside the small models, and here: tests/admin starts the process for it."""
    settings.ENCODER, settings.LANGUAGE_MODEL = f"local-dir:{tiny_encoder_dir}", f"local-dir:{tiny_lm_dir}"

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        out = io.StringIO()
        call_command(*command[2:], stdout=out)
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", here)


@pytest.fixture(scope="session")
def reading_engine(tiny_clip_dir: Path, tiny_lm: LanguageModel) -> CaptionEngine:
    """An engine whose encoder has a text half: it embeds what people search for. No style's mapper fits it."""
    return CaptionEngine(Captioner(Encoder.load(f"local-dir:{tiny_clip_dir}", device="cpu"), tiny_lm), "reader", 8)


@pytest.fixture(scope="session")
def tables(django_db_blocker: Any) -> Path:
    """An SQLite file with the service's tables, to be copied."""

    def migrate(path: Path) -> None:
        with django_db_blocker.unblock(), default_database(f"sqlite:///{path}"):
            call_command("migrate", verbosity=0)

    return once("tables.sqlite3", migrate)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tables: Path) -> None:
    """The test database as a file, as SQLite is used in service: several threads can write to it."""
    name = shutil.copy(tables, HOME / "test.sqlite3")
    django_settings.DATABASES["default"].setdefault("TEST", {})["NAME"] = name


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Its tables are there already."""
    return True


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def both_databases(request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """All tests of a file that uses this run on both databases: its `db` is the one or the other, at this address."""
    with ExitStack() as resources:
        url = f"sqlite:///{connection.settings_dict['NAME']}"
        if request.param == "postgresql":
            resources.enter_context(django_db_blocker.unblock())
            server = resources.enter_context(PostgreSQL())
            resources.enter_context(default_database(url := server.create_site("clipcap")))
        yield url


class Remembering(torch.nn.Module):
    """An image tower that looks at the same picture once: most tests caption the same photo."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.seen: dict[bytes, torch.Tensor] = {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) -> (1, E)"""
        picture = sha256(pixels.numpy().tobytes()).digest()
        if picture not in self.seen:
            self.seen[picture] = first(self.tower(pixels))
        return self.seen[picture].clone()


@pytest.fixture(scope="session")
def loaded_engine() -> CaptionEngine:
    """A caption worker's engine with the embedded models, loaded once."""
    engine = CaptionEngine.load("tests")
    encoder = engine.captioner.encoder
    encoder.tower = Remembering(encoder.tower)
    return engine


@pytest.fixture(scope="session")
def small_engine(tiny_encoder_dir: Path, tiny_lm: LanguageModel) -> CaptionEngine:
    """A worker's engine with small models."""
    return CaptionEngine(Captioner(Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu"), tiny_lm), "tests", 8)


def wants_small_models(request: pytest.FixtureRequest) -> bool:
    """Whether a test is marked `small_models`, and not itself `embedded_models` in a file or folder of such tests."""
    marks = (mark.name for mark in request.node.iter_markers())  # the closest first
    return next((name for name in marks if name in ("small_models", "embedded_models")), "") == "small_models"


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> CaptionEngine:
    """`engine.work()` captions one batch of what is queued. It knows nothing of what another test did with it."""
    loaded_engine: CaptionEngine = request.getfixturevalue(
        "small_engine" if wants_small_models(request) else "loaded_engine"
    )
    loaded_engine.mappers.clear()
    loaded_engine._turn = 0
    loaded_engine.breaker = Breaker()
    loaded_engine.ahead = EmbeddingAhead(loaded_engine.captioner, loaded_engine._let_pass)
    return loaded_engine


@pytest.fixture
def media(settings: Any, tmp_path: Path) -> Path:
    """The folder of stored files, empty."""
    settings.MEDIA_ROOT = tmp_path / "media"
    return tmp_path / "media"


@pytest.fixture(autouse=True)
def index_folder(settings: Any, tmp_path: Path) -> Path:
    """The folder of the index of photos, empty: numbers of rows come again when a test's are undone."""
    settings.INDEX = tmp_path / "index"
    return tmp_path / "index"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Throttles count in the cache, and one test's calls are not another's."""
    FailOpen.away_until = 0.0
    cache.clear()


def installed(folder: Path, models: Path) -> tuple[list[MapperVersion], Path]:
    """What `install_styles` files of these models: versions, of which there are no rows, and the folder of their files,
    which is given."""
    with override_settings(MEDIA_ROOT=folder, MODELS=models), transaction.atomic():
        call_command("install_styles", stdout=io.StringIO())
        versions = list(MapperVersion.objects.select_related("style").order_by("pk"))
        transaction.set_rollback(True)
    return versions, folder


@pytest.fixture(scope="session")
def shipped(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[MapperVersion], Path]:
    """The versions of the embedded models' styles, made once."""
    with django_db_blocker.unblock():
        return installed(tmp_path_factory.mktemp("shipped"), django_settings.MODELS)


@pytest.fixture(scope="session")
def small_bundle(
    small_engine: CaptionEngine, tiny_encoder_dir: Path, tiny_lm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder like the embedded models', of the small ones and three styles."""
    models = tmp_path_factory.mktemp("models")
    (models / "encoder").symlink_to(tiny_encoder_dir)
    (models / "lm").symlink_to(tiny_lm_dir)
    (models / "styles").mkdir()
    captioner = small_engine.captioner
    for slug in ("factual", "humorous", "romantic"):
        config = MapperConfig(
            "transformer", captioner.encoder.embedding_size, captioner.language_model.size, prefix_length=4, layers=1
        )
        mapper = MapperCheckpoint(build_mapper(config), captioner.encoder.identity, captioner.language_model.identity)
        save_mapper(mapper, models / "styles" / f"{slug}.safetensors")
    return models


@pytest.fixture(scope="session")
def small_shipped(
    django_db_setup: None, django_db_blocker: Any, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[MapperVersion], Path]:
    """The versions of three styles of the small models."""
    with django_db_blocker.unblock():
        return installed(tmp_path_factory.mktemp("small"), small_bundle)


@pytest.fixture
def styles(db: None, media: Path, request: pytest.FixtureRequest) -> dict[str, Style]:
    """The three styles of the embedded bundle, or of the small one, in service, by slug; factual is the default."""
    versions, folder = request.getfixturevalue("small_shipped" if wants_small_models(request) else "shipped")
    shutil.copytree(folder, media, dirs_exist_ok=True)
    for version in deepcopy(versions):
        version.style.pk = version.pk = None
        version.style.save(force_insert=True)
        version.style = version.style  # the number that it has now
        version.save(force_insert=True)
        services.promote(version=version, reason="shipped with the software")
    return {style.slug: style for style in Style.objects.all()}


@pytest.fixture
def style(db: None, media: Path) -> Style:
    """A style without versions and examples."""
    return Style.objects.create(slug="plain", name="Plain")


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A photo as a camera would send it: a JPEG file."""
    return (ROOT / "examples/coco_cc/000000000790.jpg").read_bytes()


@pytest.fixture
def viewer(db: None) -> Viewer:
    """A signed-in user, `viewer.user`, without special permissions."""
    return Viewer(get_user_model().objects.create_user("ada", password="lovelace"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window; it calls nobody by itself."""
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"there is no {chromium}; on Debian and Ubuntu: apt install chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # From now on Playwright has an event loop in this thread. Nothing of Django's runs in it.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield launched
        launched.close()
