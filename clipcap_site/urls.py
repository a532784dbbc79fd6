"""The addresses of the site: the API, the administration, and the pages."""

from django.contrib import admin
from django.urls import include, path

from captioner import api as captioner_api
from training import api as training_api

urlpatterns = [
    path("api/", include(([*captioner_api.urlpatterns, *training_api.urlpatterns], "v1"))),
    path("admin/", admin.site.urls),
    path("", include("accounts.urls")),
    path("", include("captioner.urls")),
]

handler500 = "captioner.problems.server_error"
