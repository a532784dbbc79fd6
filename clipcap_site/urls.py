"""The URLs of the site: the API, the administration, and the pages."""

from django.contrib import admin
from django.urls import include, path

from captioner.api import urls as captioner_api
from training import api as training_api

urlpatterns = [
    path("api/", include(([*captioner_api.urlpatterns, *training_api.urlpatterns], "v1"))),
    path("admin/", admin.site.urls),
    path("", include("accounts.urls")),
    path("", include("captioner.web.urls")),
]

handler500 = "captioner.api.problems.server_error"
