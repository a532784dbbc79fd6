"""From untrusted bytes to a stored picture.

Nothing of an upload is kept but its pixels: they are decoded within limits, turned upright and written as a new JPEG.
Metadata (where a photo was taken, say), appended archives, scripts and the file's name end here.
"""

import hashlib
import io
import logging
import uuid
from collections.abc import Iterable
from math import ceil
from typing import Any

from django.conf import settings
from django.core.files.base import ContentFile
from PIL import ExifTags
from PIL import Image as Pillow
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from captioner.admission import admitted
from captioner.errors import Refused
from captioner.jobs.database import turn_to_write
from captioner.models import EXAMPLES, Image
from clipcap.image import ImageError, open_image, pixels_to_decode

log = logging.getLogger(__name__)

SIDE = 1024  # the short side that is kept of bigger pictures; the long one is capped at twice that,
ENCODER_SIDE = 512  # but never so that less than this is left of the short one: as many pixels as encoders look at
THUMBNAIL = 400
_STATUS = {"too_many_pixels": 413, "too_many_bytes": 413, "unsupported_format": 415, "not_an_image": 415}


def check_size(size: int) -> None:
    """Refuse a file of so many bytes, before it is read where that is possible.

    Raises:
        Refused: they are too many.
    """
    if size > settings.MAX_UPLOAD_BYTES:
        raise Refused(
            "image_too_large",
            f"the file has {size:,} bytes; the limit is {settings.MAX_UPLOAD_BYTES:,}; make the picture smaller",
            status=413,
        )


def check_pixels(pictures: Iterable[bytes]) -> None:
    """Refuse pictures of one request that would keep a thread decoding for too long, before any is decoded.

    Raises:
        Refused: they have too many pixels.
    """
    total = sum(pixels_to_decode(data, min_side=SIDE) or 0 for data in pictures)
    if total > settings.MAX_REQUEST_PIXELS:
        raise Refused(
            "too_many_pixels",
            f"the pictures have {total:,} pixels in total, and a request can have at most "
            f"{settings.MAX_REQUEST_PIXELS:,}; send several requests, or smaller pictures",
            status=413,
        )


def store(data: bytes, sender: str = EXAMPLES, **fields: Any) -> Image:
    """The stored picture of these bytes: the one that this sender has already, or a new one.

    Its files are written before its row, so no row ever names a file that is not there, whole.

    Args:
        sender: `Viewer.sender`.

    Raises:
        Refused: the bytes are not a picture within the limits, the disk is full, or too many are being decoded.
    """
    check_size(len(data))
    digest = hashlib.sha256(data).hexdigest()
    known = Image.objects.filter(sha256=digest, sender=sender).first() if sender else None
    if known and all(file.storage.exists(str(file.name)) for file in (known.file, known.thumbnail)):
        return known
    picture = _decoded(data, SIDE)
    width, height = picture.size
    scale = max(2 * SIDE / max(width, height), ENCODER_SIDE / min(width, height))
    picture.thumbnail((ceil(width * scale), ceil(height * scale)))
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    key = uuid.uuid4()
    content = _jpeg(picture, **_compression(data, picture))
    new = Image(
        id=key, sha256=digest, sender=sender, width=picture.width, height=picture.height, size=len(content), **fields
    )
    try:
        new.file.save(f"{key}.jpg", ContentFile(content), save=False)
        new.thumbnail.save(f"{key}.jpg", ContentFile(_jpeg(small, quality=80)), save=False)
    except Exception as error:  # every storage raises its own kinds
        log.warning("a picture cannot be stored", extra={"error": error})
        for file in (new.file, new.thumbnail):  # a file that could not be written whole is there in part
            file.name = file.field.generate_filename(new, f"{key}.jpg")
        remove_files(new)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the storage does not accept it"
        raise Refused(
            "storage_full",
            f"the picture could not be stored ({reason}); nothing was changed; try again later",
            status=507,
        ) from error
    if known:  # its files are gone, and here they are again
        Image.objects.filter(pk=known.pk).update(file=new.file.name, thumbnail=new.thumbnail.name)
        known.refresh_from_db()
        return known
    with turn_to_write():
        if not sender:
            new.save(force_insert=True)
            return new
        image, created = Image.objects.get_or_create(
            sha256=digest,
            sender=sender,
            defaults={field.name: getattr(new, field.name) for field in Image._meta.fields},
        )
    if not created:  # somebody stored the same picture meanwhile
        remove_files(new)
    return image


def thumbnail_of(data: bytes, side: int) -> bytes:
    """A small JPEG of a picture of which nothing is stored.

    Raises:
        Refused: the bytes are not a picture within the limits, or too many pictures are being decoded.
    """
    check_size(len(data))
    picture = _decoded(data, side)
    picture.thumbnail((side, side))
    return _jpeg(picture, quality=80)


def _decoded(data: bytes, side: int) -> Pillow.Image:
    pixels = pixels_to_decode(data, min_side=side)
    try:
        with admitted(settings.MAX_UPLOAD_PIXELS if pixels is None else pixels):
            return open_image(data, min_side=side, max_pixels=settings.MAX_UPLOAD_PIXELS)
    except ImageError as error:
        raise Refused(f"image_{error.code}", str(error), status=_STATUS.get(error.code, 422)) from error


def remove_files(image: Image) -> None:
    """Delete the picture's files, as far as they are there."""
    for file in (image.file, image.thumbnail):
        if file.name:
            try:
                file.storage.delete(file.name)
            except Exception as error:  # a file that nothing refers to takes space and does no harm
                log.warning("a file cannot be deleted", extra={"file": file.name, "error": error})


def _compression(data: bytes, picture: Pillow.Image) -> dict[str, Any]:
    """How to compress a picture that was read from these bytes, so that an encoder sees what it saw in them.

    A JPEG that is neither resized nor turned is rounded as it was before: that loses next to nothing again, and takes
    as many bytes. A small picture of another kind is seen pixel by pixel; of a big one, several pixels become one.
    """
    try:
        with JpegImageFile(io.BytesIO(data)) as source:
            upright = source.getexif().get(ExifTags.Base.Orientation, 1) == 1
            tables = [list(table) for _, table in sorted(source.quantization.items())][:2]
            if upright and source.size == picture.size and all(max(table) < 256 for table in tables):
                return {"qtables": tables, "subsampling": max(0, get_sampling(source))}
    except Exception as error:  # it is not a JPEG, or its metadata is broken, which must not cost a good picture
        log.debug("a picture is compressed again", extra={"error": error})
    return {"quality": 100, "subsampling": 0} if min(picture.size) <= ENCODER_SIDE else {"quality": 92}


def _jpeg(picture: Pillow.Image, **compression: Any) -> bytes:
    out = io.BytesIO()
    try:
        picture.save(out, "JPEG", optimize=True, **compression)
    except OSError:  # to optimise, Pillow sets aside a byte or two for each pixel, and noise takes more
        out = io.BytesIO()
        picture.save(out, "JPEG", **compression)
    return out.getvalue()
