"""Photos with finished captions, as the gallery shows them."""

from captioner import services
from captioner.models import Caption, Image, Viewer
from tests.pages.captions import finish, jpeg

COLOURS = ("red", "green", "blue")


def photo_of(viewer: Viewer, colour: str, name: str = "", styles: tuple[str, ...] = ("factual", "romantic")) -> Image:
    """A photo of one colour, captioned in these styles."""
    upload = services.Upload(jpeg(colour=colour).read(), name or f"{colour}.jpg")
    request = services.request_captions(viewer=viewer, images=[upload], styles=styles)
    captions: list[Caption] = list(request.captions.select_related("style", "image"))
    for caption in captions:
        finish(caption, f"a {colour} wall, {caption.style.slug}")
    return captions[0].image


def keys(images: list[Image]) -> list[str]:
    return [str(image.pk) for image in images]
