"""Versions from elsewhere, with language models of their own: imported, tried, and captioning through the service."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.urls import reverse
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks import original
from captioner import services
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, Embedding, Image, MapperVersion, Style, Viewer, Worker
from clipcap.captioner import Captioner
from clipcap.checkpoint import load_mapper, read_original
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig, build_mapper
from tests.people import client_of
from tests.test_checkpoint import ORIGINAL
from training.models import Example

PHOTOS = sorted((Path(__file__).parent.parent / "examples/coco_cc").glob("*.jpg"))[:6]
TINY = MapperConfig("mlp", 16, 32, prefix_length=3, hidden_size=8, stop_text=".")


pytestmark = pytest.mark.usefixtures("tiny_models")


def their_gpt2(lm: LanguageModel, shift: float = 0.1) -> dict[str, Tensor]:
    """The weights of a GPT-2 as theirs became, trained along with a mapper."""
    generator = torch.Generator().manual_seed(3)
    return {name: t + shift * torch.randn(t.shape, generator=generator) for name, t in lm.weights.items()}


def their_file(path: Path, gpt2: dict[str, Tensor], config: MapperConfig = TINY) -> Path:
    """A checkpoint as the authors' code saves it of an MLP and its GPT-2."""
    torch.manual_seed(4)
    names = {"hidden": "model.0", "out": "model.2"}
    state = {
        f"clip_project.{names[name]}.{kind}": 0.5 * tensor
        for name, kind, tensor in ((*n.split("."), t) for n, t in build_mapper(config).state_dict().items())
    }
    torch.save(state | {f"gpt.{name}": tensor for name, tensor in gpt2.items()}, path)
    return path


def test_captions_by_an_imported_gpt2_through_the_service_are_token_for_token_those_of_the_authors_code(
    captioner: Captioner, tiny_lm: LanguageModel, style: Style, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = their_file(tmp_path / "coco_prefix-009.pt", their_gpt2(tiny_lm))
    call_command("import_version", "plain", path, "--no-normalize")
    assert "filed as plain v1: a mapper and a language model of its own; trained on" in capsys.readouterr().out
    version = style.versions.get()
    assert version.config["language_model"] == "finetuned"
    services.promote(version=version)
    photos = [services.Upload(photo.read_bytes(), photo.name) for photo in PHOTOS]
    options = {"method": "greedy", "max_length": 12}
    services.request_captions(viewer=Viewer(), images=photos, styles=["plain"], options=options)
    CaptionEngine(captioner, "tests", 8).work()
    theirs = read_original(path, normalize=False)
    config: Any = tiny_lm.model.config
    gpt2 = GPT2LMHeadModel(config).eval()
    gpt2.load_state_dict(theirs.weights, strict=False)
    rows = list(Caption.objects.select_related("image"))
    assert len(rows) == len(PHOTOS)
    for row in rows:
        vector = torch.frombuffer(bytearray(row.image.embeddings.get().vector), dtype=torch.float32)
        with torch.inference_mode():
            expected = original.greedy(gpt2, theirs.mapper(vector[None])[0], tiny_lm.encode(".")[0], 12)
        assert row.text == tiny_lm.decode(expected)


@pytest.fixture(scope="module")
def lm_of_their_size(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, str]:
    """A GPT-2 of the sizes of that in the authors' checkpoints, whose tokens' texts are their numbers: so a caption's
    text tells its tokens. And where it comes from."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {"." if token == 13 else f"<{token}>": token for token in range(1000)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab=vocabulary, merges=[])))
    tokenizer.backend_tokenizer.decoder = Fuse()
    tokenizer.eos_token = "<999>"
    tokenizer.save_pretrained(folder)
    config = GPT2Config(**json.loads((ORIGINAL / "mlp_k10_d512" / "gpt2_config.json").read_text()))
    torch.manual_seed(5)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return LanguageModel.load(f"local-dir:{folder}", device="cpu"), f"local-dir:{folder}"


@pytest.fixture
def models_of_their_size(
    settings: Any, loaded_engine: CaptionEngine, lm_of_their_size: tuple[LanguageModel, str]
) -> CaptionEngine:
    """That GPT-2 and the shipped encoder, whose embeddings have the size of CLIP's."""
    lm, source = lm_of_their_size
    settings.ENCODER, settings.LANGUAGE_MODEL = f"local-dir:{settings.MODELS / 'encoder'}", source
    return CaptionEngine(Captioner(loaded_engine.captioner.encoder, lm), "tests", 8)


def written_in_both_ways(
    engine: CaptionEngine, embeddings: Tensor | None = None
) -> tuple[dict[str, list[list[str]]], Tensor]:
    """What the service writes about each photo, best first, by method; and the embeddings that it was written from:
    (N, E), if they are given, else the photos' own."""
    photos = [services.Upload(photo.read_bytes(), photo.name) for photo in PHOTOS]
    found = {}
    for method, captions in {"greedy": 1, "beam": 5}.items():
        options = {"method": method, "captions": captions, "max_length": 20}
        asked = services.request_captions(viewer=Viewer(), images=photos, styles=["plain"], options=options)
        rows = asked.captions.order_by("name").select_related("image")
        for row, vector in zip(rows, () if embeddings is None else embeddings.numpy(), strict=embeddings is not None):
            row.image.embeddings.create(encoder=engine.captioner.encoder.identity, vector=vector.tobytes())
        assert engine.work() == len(PHOTOS)
        found[method] = [[row.text, *(other["text"] for other in row.alternatives)] for row in rows.all()]
    vectors = [bytes(row.image.embeddings.get().vector) for row in rows]
    return found, torch.frombuffer(bytearray(b"".join(vectors)), dtype=torch.float32).view(len(PHOTOS), -1)


@pytest.mark.parametrize(
    ("kind", "normalize", "front"), [("mlp", "no", ""), ("mlp", "no", "module."), ("transformer", "yes", "")]
)
def test_the_authors_checkpoints_imported_in_the_admin_write_their_tokens_through_the_service(
    kind: str, normalize: str, front: str, models_of_their_size: CaptionEngine, style: Style, tmp_path: Path
) -> None:
    engine = models_of_their_size
    encoder, lm = engine.captioner.encoder, engine.captioner.language_model
    path = ORIGINAL / f"{kind}_k10_d512" / "coco_prefix-009.pt"
    state = {f"{front}{name}": tensor for name, tensor in torch.load(path, weights_only=True).items()}
    torch.save(state, tmp_path / "theirs.pt")
    boss = client_of(User.objects.create_superuser("boss"))
    form = {
        "style": style.pk,
        "file": SimpleUploadedFile("theirs.pt", (tmp_path / "theirs.pt").read_bytes()),
        "normalize": normalize,
        "heads": 8,
        "encoder": encoder.identity,
    }
    page = boss.post(reverse("admin:captioner_mapperversion_import"), form, follow=True).content.decode()
    assert "Filed as plain v1: a mapper and a language model of its own" in page
    version = style.versions.get()
    boss.post(reverse("admin:captioner_mapperversion_promote", args=[version.pk]), {"reason": "the authors'"})
    assert (style.version_in_service, version.config["normalize"]) == (version, normalize == "yes")

    by_the_service, embeddings = written_in_both_ways(engine)
    theirs = read_original(path, normalize=normalize == "yes", heads=8)
    gpt2, stop = theirs.build_gpt2(heads=lm.heads), lm.encode(".")[0]
    with torch.inference_mode():
        prefixes = theirs.mapper(embeddings)
        assert by_the_service == {
            "greedy": [[lm.decode(original.greedy(gpt2, prefix, stop, 20))] for prefix in prefixes],
            "beam": [[lm.decode(best) for best in original.beam(gpt2, prefix, stop, 20)] for prefix in prefixes],
        }

    # And what their own code wrote from the embeddings that come with their checkpoints.
    expected = json.loads((path.parent / "expected.json").read_text())
    by_the_service, _ = written_in_both_ways(engine, torch.tensor(expected["clip_embeddings"]))
    told = {"greedy": [[one] for one in expected["greedy"]], "beam": expected["beam5"]}
    assert by_the_service == {
        method: [["".join(f"<{token}>" for token in one.split()) for one in best] for best in photos]
        for method, photos in told.items()
    }


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_what_a_file_of_the_authors_holds_is_shown_beside_models_that_it_does_not_fit(
    kind: str, style: Style, tmp_path: Path
) -> None:
    path = ORIGINAL / f"{kind}_k10_d512" / "coco_prefix-009.pt"
    with path.open("rb") as file, pytest.raises(Refused) as refusal:
        services.import_version(style=style, file=SimpleUploadedFile("theirs.pt", file.read()), name="theirs.pt")
    assert "embeddings of size 512, not 16" in refusal.value.detail
    assert "the file holds a GPT-2 of" in refusal.value.detail
    assert "/" not in refusal.value.detail
    assert not style.versions.exists()


def test_a_gpt2_of_another_shape_is_refused_at_the_import_with_its_sizes(
    tiny_lm: LanguageModel, style: Style, tmp_path: Path
) -> None:
    deeper = their_gpt2(tiny_lm)
    deeper |= {n.replace(".h.1.", ".h.2."): t for n, t in deeper.items() if ".h.1." in n}
    with pytest.raises(CommandError, match="3 layers of size 32 and 300 tokens"):
        call_command("import_version", "plain", their_file(tmp_path / "deep.pt", deeper))
    assert not style.versions.exists()


def with_held_out_photos(style: Style, captioner: Captioner, path: Path, normalize: bool) -> None:
    """Photos whose embeddings are long, and as people's captions what a file's mapper writes of them one way."""
    model = captioner.load_model(path, normalize=normalize)
    generator = torch.Generator().manual_seed(8)
    vectors = 30 * F.normalize(torch.randn(8, 16, generator=generator), dim=-1)
    from clipcap.options import DecodingOptions

    texts = [answer[0].text for answer in captioner.caption(vectors, [model] * 8, DecodingOptions("greedy"))]
    for number, (vector, text) in enumerate(zip(vectors, texts, strict=True)):
        image = Image.objects.create(
            width=1, height=1, size=1, sha256=f"{number:064}", file=f"images/{uuid.uuid4()}.jpg"
        )
        Embedding.objects.create(image=image, encoder=captioner.encoder.identity, vector=vector.numpy().tobytes())
        Example.objects.create(
            style=style, image=image, text=f"{text} photo {number}", held_out=True, source=Example.Source.IMPORTED
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_both_ways_are_tried_on_held_out_photos_and_the_better_one_is_taken_and_told(
    normalize: bool, captioner: Captioner, tiny_lm: LanguageModel, style: Style, tmp_path: Path
) -> None:
    path = their_file(tmp_path / "theirs.pt", their_gpt2(tiny_lm))
    with_held_out_photos(style, captioner, path, normalize)
    boss = client_of(User.objects.create_superuser("boss"))
    form = {"style": style.pk, "file": SimpleUploadedFile("theirs.pt", path.read_bytes())}
    page = boss.post(reverse("admin:captioner_mapperversion_import"), form, follow=True).content.decode()
    version = style.versions.get()
    assert version.config["normalize"] is normalize
    assert load_mapper(Path(version.file.path)).mapper.config.normalize is normalize
    assert "(chosen by score: CIDEr " in page
    assert "on 8 held-out photos, and" in page
    assert "a mapper and a language model of its own" in page
    call_command("import_version", "plain", path, "--normalize" if not normalize else "--no-normalize")
    contrary = style.versions.get(number=2)
    assert contrary.config["normalize"] is not normalize, "whoever says it is obeyed"
    assert "(given: CIDEr " in contrary.config["trained_on"]


def test_heads_and_encoder_that_a_file_does_not_record_can_be_given(
    captioner: Captioner, style: Style, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_checkpoint import original_state

    torch.save(original_state(MapperConfig("transformer", 16, 32, 3, clip_length=2, layers=1)), tmp_path / "t.pt")
    call_command("import_version", "plain", tmp_path / "t.pt", "--heads", "4", "--encoder", captioner.encoder.identity)
    version = style.versions.get()
    assert (version.config["heads"], version.encoder) == (4, captioner.encoder.identity)
    assert version.brings == "a mapper for the shared language model"
    with pytest.raises(CommandError, match="trained for encoder ViT-B-32/openai"):
        call_command("import_version", "plain", tmp_path / "t.pt", "--encoder", "ViT-B-32/openai")
    with pytest.raises(CommandError, match="records 4 attention heads"):
        call_command("import_version", "plain", version.file.path, "--heads", "8")


def test_the_form_asks_for_heads_and_encoder_too(captioner: Captioner, style: Style, tmp_path: Path) -> None:
    from tests.test_checkpoint import original_state

    torch.save(original_state(MapperConfig("transformer", 16, 32, 3, clip_length=2, layers=1)), tmp_path / "t.pt")
    boss = client_of(User.objects.create_superuser("boss"))

    def post(**given: Any) -> str:
        file = SimpleUploadedFile("t.pt", (tmp_path / "t.pt").read_bytes())
        form = {"style": style.pk, "file": file, "normalize": "", **given}
        return boss.post(reverse("admin:captioner_mapperversion_import"), form, follow=True).content.decode()

    assert "trained for encoder ViT-B-32/openai" in post(heads=4, encoder="ViT-B-32/openai")
    assert "heads (5) must divide the language model" in post(heads=5, encoder=captioner.encoder.identity)
    assert not style.versions.exists()
    post(heads=4, encoder=f" {captioner.encoder.identity} ")
    version = style.versions.get()
    assert (version.config["heads"], version.encoder) == (4, captioner.encoder.identity)


def test_an_import_names_what_is_not_there(style: Style, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    for arguments, named in (
        (("other", tmp_path / "empty.pt"), "no style 'other'; the styles are plain"),
        (("plain", tmp_path / "none.pt"), r"none\.pt cannot be read: No such file"),
        (("plain", tmp_path / "empty.pt"), "mapper file empty.pt"),
        (("plain", tmp_path / "empty.pt", "--user", "nobody"), "no user 'nobody'"),
    ):
        with pytest.raises(CommandError, match=named):
            call_command("import_version", *arguments)


def test_an_archived_style_takes_no_versions(tiny_lm: LanguageModel, style: Style, tmp_path: Path) -> None:
    style.status = Style.Status.ARCHIVED
    style.save()
    with pytest.raises(CommandError, match="archived"):
        call_command("import_version", "plain", their_file(tmp_path / "theirs.pt", their_gpt2(tiny_lm)))
    assert not MapperVersion.objects.exists()


def test_a_version_for_other_models_than_the_workers_have_loaded_is_not_promoted(
    captioner: Captioner, tiny_lm: LanguageModel, style: Style, tmp_path: Path
) -> None:
    call_command("import_version", "plain", their_file(tmp_path / "theirs.pt", their_gpt2(tiny_lm)))
    version = style.versions.get()
    worker = Worker.objects.create(name="w", queue="captions", models_loaded="an encoder, another@lm")
    with pytest.raises(Refused) as refusal:
        services.promote(version=version)
    assert f"was trained for language model {tiny_lm.identity}, and the workers have loaded another@lm" in str(
        refusal.value
    )
    assert (refusal.value.status, style.version_in_service) == (409, None)
    Worker.objects.filter(pk=worker.pk).update(models_loaded=f"an encoder, renamed@{tiny_lm.identity.split('@')[1]}")
    services.promote(version=version)
    assert style.version_in_service == version


def test_the_api_says_what_the_version_in_service_brings(
    tiny_lm: LanguageModel, style: Style, tmp_path: Path, viewer: Viewer
) -> None:
    call_command("import_version", "plain", their_file(tmp_path / "theirs.pt", their_gpt2(tiny_lm)))
    client = client_of(viewer.user)
    address = reverse("v1:style-detail", args=["plain"])
    services.promote(version=style.versions.get())
    assert client.get(address).json()["language_model"] == "finetuned"


def test_at_caption_time_a_version_that_does_not_fit_is_reported_without_a_trace(
    captioner: Captioner, tiny_lm: LanguageModel, style: Style, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call_command("import_version", "plain", their_file(tmp_path / "theirs.pt", their_gpt2(tiny_lm)))
    version = style.versions.get()
    services.promote(version=version)
    other = LanguageModel(tiny_lm.model, tiny_lm.tokenizer, "another@lm")
    photo = [services.Upload(PHOTOS[0].read_bytes(), PHOTOS[0].name)]
    services.request_captions(viewer=Viewer(), images=photo, styles=["plain"])
    CaptionEngine(Captioner(captioner.encoder, other), "tests", 8).work()
    version.refresh_from_db()
    assert "but another@lm is loaded" in version.load_error
    (row,) = Caption.objects.all()
    assert (row.status, row.failures[0]["code"]) == ("queued", "style_unavailable")
    assert not [record for record in caplog.records if record.exc_info]
