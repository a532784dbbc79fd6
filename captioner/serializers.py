"""What the API and webhooks say about images, styles, captions and requests."""

from typing import Any

from rest_framework import serializers

from captioner.models import Caption, CaptionRequest


class CaptionSerializer(serializers.ModelSerializer[Caption]):
    class Meta:
        model = Caption
        fields = ("id", "status", "text")


class RequestSerializer(serializers.ModelSerializer[CaptionRequest]):
    captions: Any = CaptionSerializer(many=True, read_only=True)

    class Meta:
        model = CaptionRequest
        fields = ("id", "status", "created_at", "captions")
