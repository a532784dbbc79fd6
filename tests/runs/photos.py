"""What is done with captions and corrections of the photos that runs learn from."""

from pathlib import Path

from captioner import services as captioner_services
from captioner import uploads
from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, Correction, Style, Viewer
from captioner.services import Upload
from tests.captions import finished

COCO = Path(__file__).parents[2] / "examples" / "coco_cc"


def caption(style: Style, data: bytes, engine: CaptionEngine) -> Caption:
    request = captioner_services.request_captions(viewer=Viewer(), images=[Upload(data)], styles=[style.slug])
    assert engine.work() == 1
    return request.captions.get()


def corrected(style: Style, photos: list[tuple[bytes, list[str]]], text: str = "") -> list[Correction]:
    """Captions of these photos, as a person corrected them."""
    made = []
    for data, captions in photos:
        image = uploads.store(data)
        row = finished(image, style, "")
        made.append(captioner_services.correct_caption(Viewer(), row.pk, text or captions[0]))
    return made
