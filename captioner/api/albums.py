"""/api/albums/: photos put together under a name."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import PROBLEM, ApiViewSet
from captioner.api.serializers import AlbumNameSerializer, AlbumPhotosSerializer, AlbumSerializer, NewAlbumSerializer
from captioner.models import Album


class AlbumViewSet(ApiViewSet):
    """Your albums. Nobody else sees them."""

    queryset = Album.objects.none()
    serializer_class = AlbumSerializer

    def list(self, request: Request) -> Response:
        """Your albums. `GET /api/images/?album=ID` lists the photos of one."""
        return self.page(services.own_albums(self.viewer))

    @extend_schema(request=NewAlbumSerializer, responses={201: AlbumSerializer, 404: PROBLEM, 409: PROBLEM})
    def create(self, request: Request) -> Response:
        """Create an album, optionally with photos in it."""
        given = _valid(NewAlbumSerializer, request)
        album = services.create_album(self.viewer, given["name"], given.get("image_id", ()))
        return Response(self.get_serializer(album).data, status=201)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One album."""
        return Response(self.get_serializer(services.get_album(self.viewer, pk)).data)

    @extend_schema(request=AlbumNameSerializer, responses={200: AlbumSerializer, 409: PROBLEM})
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Rename an album."""
        services.get_album(self.viewer, pk)
        name = _valid(AlbumNameSerializer, request)["name"]
        return Response(self.get_serializer(services.rename_album(self.viewer, pk, name)).data)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete an album. Its photos stay."""
        services.delete_album(self.viewer, pk)
        return Response(status=204)

    @extend_schema(request=AlbumPhotosSerializer, responses={200: AlbumSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def add(self, request: Request, pk: UUID) -> Response:
        """Add photos to an album. Those that are in it already stay."""
        services.get_album(self.viewer, pk)
        images = _valid(AlbumPhotosSerializer, request)["image_id"]
        return Response(self.get_serializer(services.add_to_album(self.viewer, pk, images)).data)

    @extend_schema(request=AlbumPhotosSerializer, responses={200: AlbumSerializer})
    @action(detail=True, methods=["post"])
    def remove(self, request: Request, pk: UUID) -> Response:
        """Remove photos from an album. The photos themselves stay."""
        services.get_album(self.viewer, pk)
        images = _valid(AlbumPhotosSerializer, request)["image_id"]
        return Response(self.get_serializer(services.remove_from_album(self.viewer, pk, images)).data)


def _valid(serializer: Any, request: Request) -> dict[str, Any]:
    taken = serializer(data=request.data)
    taken.is_valid(raise_exception=True)
    data: dict[str, Any] = taken.validated_data
    return data
