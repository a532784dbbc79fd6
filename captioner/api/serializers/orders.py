"""Serializers of requests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rest_framework import serializers

from captioner.api.serializers.fields import Base64FilesField, ImageIdsField, Strict, StylesField, UploadField
from captioner.services import LONGEST_ALBUM, LONGEST_CAPTION, MOST_ALTERNATIVES, Upload
from clipcap.options import METHODS

OPTIONS = ("method", "captions", "max_length", "beam_size", "temperature", "top_p", "seed", "rerank")
LONGEST_DEADLINE = 24 * 3600


class NewCaptionsSerializer(Strict):
    """Images and options. Every image is captioned in every style."""

    image_id = ImageIdsField(required=False, allow_empty=False, help_text="stored images, by id")
    image_base64 = Base64FilesField(
        required=False,
        allow_empty=False,
        help_text='files in base64; data: URLs are accepted too, and {"data", "name"} of a file that has a name',
    )
    style = StylesField(
        required=False, allow_empty=False, help_text="slugs; `all` means every style; the default style if left out"
    )
    method = serializers.ChoiceField(choices=METHODS, required=False)
    captions = serializers.IntegerField(
        min_value=1, max_value=MOST_ALTERNATIVES, required=False, help_text="per image and style: the best and others"
    )
    max_length = serializers.IntegerField(min_value=1, max_value=LONGEST_CAPTION, required=False, help_text="in tokens")
    beam_size = serializers.IntegerField(min_value=1, max_value=MOST_ALTERNATIVES, required=False)
    temperature = serializers.FloatField(min_value=0.01, max_value=100, required=False)
    top_p = serializers.FloatField(min_value=0.01, max_value=1, required=False)
    seed = serializers.IntegerField(min_value=0, max_value=2**63 - 1, required=False)
    rerank = serializers.BooleanField(
        required=False,
        allow_null=True,
        help_text="choose captions by how well they fit the photo (beam only); null: yes, if the models support it",
    )
    min_confidence = serializers.FloatField(
        min_value=0, max_value=1, required=False, help_text="below it a caption has no text, and `withheld` says why"
    )
    bulk = serializers.BooleanField(
        required=False, default=False, help_text="low priority: your other captions and those of others go first"
    )
    deadline_seconds = serializers.IntegerField(
        min_value=1, max_value=LONGEST_DEADLINE, required=False, help_text="captions still queued after this time fail"
    )
    webhook_url = serializers.CharField(
        max_length=2000, required=False, help_text="called when all captions are finished"
    )
    webhook_secret = serializers.CharField(
        max_length=100, required=False, help_text="`whsec_` and 24 to 64 bytes in base64; generated if left out"
    )

    webhook_previous_secret = serializers.CharField(
        max_length=100,
        required=False,
        help_text="a second secret to sign with while your server changes to another `webhook_secret`",
    )

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        needs = {"webhook_secret": "webhook_url", "webhook_previous_secret": "webhook_secret"}
        for field, other in needs.items():
            if field in data and other not in data:
                raise serializers.ValidationError({field: f"it has no effect without {other}"})
        return data


class NewCaptionsFormSerializer(NewCaptionsSerializer):
    """The same as a form, which can contain files. Repeat a field to give several values."""

    image = serializers.ListField(
        child=UploadField(),
        required=False,
        allow_empty=False,
        help_text="picture files; their names are returned with the captions",
    )


class RedeliverySerializer(Strict):
    secret = serializers.CharField(max_length=100, required=False, help_text="the secret to sign with from now on")
    previous_secret = serializers.CharField(
        max_length=100, required=False, help_text="a second secret to sign with, next to `secret`"
    )


class NewCorrectionSerializer(Strict):
    text = serializers.CharField(max_length=500, help_text="what the caption should be")


class AlbumNameSerializer(Strict):
    name = serializers.CharField(max_length=LONGEST_ALBUM)


class AlbumPhotosSerializer(Strict):
    image_id = ImageIdsField(allow_empty=False, help_text="stored images, by id")


class NewAlbumSerializer(AlbumNameSerializer):
    image_id = ImageIdsField(required=False, help_text="stored images that the album begins with, by id")


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of all that was asked for: of the values as they were understood, and of the files' bytes."""

    def plain(value: Any) -> str:
        return hashlib.sha256(value.data).hexdigest() if isinstance(value, Upload) else str(value)

    return hashlib.sha256(json.dumps(data, sort_keys=True, default=plain).encode()).hexdigest()
