"""The URLs of the API, but for those of styles, which the app that makes styles adds."""

from __future__ import annotations

from django.urls import path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.routers import SimpleRouter

from captioner.api import health
from captioner.api.albums import AlbumViewSet
from captioner.api.captions import CaptionViewSet
from captioner.api.docs import docs
from captioner.api.images import ImageViewSet
from captioner.api.requests import RequestViewSet

router = SimpleRouter(use_regex_path=False)


router.register("captions", CaptionViewSet, "caption")


router.register("requests", RequestViewSet, "request")


router.register("images", ImageViewSet, "image")


router.register("albums", AlbumViewSet, "album")


urlpatterns = [
    *router.urls,
    path("health/live", health.live, name="live"),
    path("health/ready", health.ready, name="ready"),
    path("metrics", health.metrics, name="metrics"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", docs, name="docs"),
]
