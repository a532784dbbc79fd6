"""/api/styles/"""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import ApiViewSet
from captioner.api.serializers import StyleSerializer
from captioner.models import Style


class StyleViewSet(ApiViewSet):
    """The styles in service, default style first."""

    queryset = Style.objects.none()
    serializer_class = StyleSerializer
    pagination_class = None
    lookup_field = "slug"
    lookup_value_converter = "slug"

    def list(self, request: Request) -> Response:
        """The styles in service."""
        return Response(self.get_serializer(services.styles_in_service(), many=True).data)

    def retrieve(self, request: Request, slug: str) -> Response:
        """One style."""
        return Response(self.get_serializer(services.get_style(slug)).data)
