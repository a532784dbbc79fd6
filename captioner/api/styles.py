"""/api/styles/: the styles to choose from; for administrators, a style's way out of service and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.apps import apps
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import PROBLEM, ApiViewSet
from captioner.api.permissions import Scope
from captioner.api.serializers import PollSerializer, StyleSerializer
from captioner.errors import Refused
from captioner.models import Poll, Style

SERVE = "captioner.add_promotion"  # who may decide what is in service


class StyleViewSet(ApiViewSet):
    """The styles in service, default style first."""

    queryset = Style.objects.none()
    serializer_class = StyleSerializer
    pagination_class = None
    lookup_field = "slug"
    lookup_value_converter = "slug"
    scope = Scope.TRAIN

    def list(self, request: Request) -> Response:
        """The styles in service."""
        return Response(self.get_serializer(services.styles_in_service(), many=True).data)

    def retrieve(self, request: Request, slug: str) -> Response:
        """One style in service."""
        return Response(self.get_serializer(services.get_style(slug)).data)

    @extend_schema(responses=PollSerializer(many=True), filters=False)
    @action(detail=True, serializer_class=PollSerializer)
    def votes(self, request: Request, slug: str) -> Response:
        """Blind votes between versions of a style, newest first. What they found out is shown when they have ended.

        This takes the permission "Can view mapperversion".
        """
        style = _managed(request, slug, "captioner.view_mapperversion")
        polls = Poll.objects.filter(candidate__style=style).select_related("candidate", "opponent")
        return Response(self.get_serializer(polls, many=True).data)

    @extend_schema(request=None, responses={200: StyleSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, slug: str) -> Response:
        """Withdraw a style: it can no longer be requested.

        Captions that were requested before are still generated, and all its captions can still be read. The default
        style cannot be withdrawn. This takes the permission "Can add promotion".
        """
        return self._change(request, slug, services.withdraw_style)

    @extend_schema(request=None, responses={200: StyleSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, slug: str) -> Response:
        """Make a withdrawn or archived style available again. This takes the permission "Can add promotion"."""
        return self._change(request, slug, services.restore_style)

    @extend_schema(request=None, responses={200: StyleSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, slug: str) -> Response:
        """Archive a withdrawn style: it takes no imports, training runs and promotions until it is restored.

        This takes the permission "Can add promotion".
        """
        return self._change(request, slug, services.archive_style)

    @extend_schema(responses={204: None, 409: PROBLEM})
    def destroy(self, request: Request, slug: str) -> Response:
        """Delete a style that has no captions, versions, examples or other history.

        This takes the permission "Can delete style".
        """
        services.delete_style(_managed(request, slug, "captioner.delete_style"), request.user)
        return Response(status=204)

    def _change(self, request: Request, slug: str, change: Callable[[Style, Any], object]) -> Response:
        style = _managed(request, slug, SERVE)
        change(style, request.user)
        return Response(self.get_serializer(style).data)


def _managed(request: Request, slug: str, permission: str) -> Style:
    """The style that is to be changed.

    Raises:
        Refused: it is not there, or the caller lacks the permission.
    """
    check_permission(request, permission)
    return services.find_style(slug)


def check_permission(request: Request, permission: str) -> None:
    """Refuse callers without one of the admin's permissions.

    Raises:
        Refused: they lack it; its name is said as the admin shows it.
    """
    if not request.user.has_perm(permission):
        app, _, codename = permission.partition(".")
        verb, _, model = codename.partition("_")
        name = f"Can {verb} {apps.get_model(app, model)._meta.verbose_name}"
        raise Refused("forbidden", f"this takes the permission {name!r}; ask an administrator for it", status=403)
