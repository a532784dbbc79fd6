"""The URLs of the pages."""

from django.urls import path

from captioner.web import albums, captions, exports, labelling, photos, selection, views, votes

urlpatterns = [
    path("", views.home, name="home"),
    path("upload/", views.upload, name="upload"),
    path("progress/", views.progress, name="progress"),
    path("requests/<uuid:pk>/", views.request_page, name="request"),
    path("gallery/", views.gallery, name="gallery"),
    path("gallery/selected/delete/", selection.delete, name="selected-delete"),
    path("gallery/selected/caption/", selection.caption, name="selected-caption"),
    path("gallery/selected/album/", albums.add, name="selected-album"),
    path("gallery/selected/album/remove/", albums.remove, name="selected-album-remove"),
    path("gallery/captions.json", exports.download, {"format": "json"}, name="download-json"),
    path("gallery/captions.csv", exports.download, {"format": "csv"}, name="download-csv"),
    path("gallery/selected/captions.json", selection.download, {"format": "json"}, name="selected-json"),
    path("gallery/selected/captions.csv", selection.download, {"format": "csv"}, name="selected-csv"),
    path("gallery/selected/captions.zip", selection.download, {"format": "zip"}, name="selected-zip"),
    path("albums/<uuid:pk>/rename/", albums.rename, name="album-rename"),
    path("albums/<uuid:pk>/delete/", albums.delete, name="album-delete"),
    path("images/<uuid:pk>/file", photos.show, {"kind": "file"}, name="image-file"),
    path("images/<uuid:pk>/thumbnail", photos.show, {"kind": "thumbnail"}, name="image-thumbnail"),
    path("images/<uuid:pk>/", views.image_page, name="image"),
    path("images/<uuid:pk>/similar/", views.similar, name="image-similar"),
    path("images/<uuid:pk>/delete/", photos.delete, name="image-delete"),
    path("images/<uuid:pk>/captions/", views.caption_image, name="image-captions"),
    path("label/", labelling.label, name="label"),
    path("label/<uuid:pk>/save/", labelling.save, name="label-save"),
    path("label/<uuid:pk>/skip/", labelling.skip, name="label-skip"),
    path("label/<uuid:pk>/undo/", labelling.undo, name="label-undo"),
    path("vote/", votes.first, name="vote"),
    path("vote/<uuid:pk>/", votes.poll, name="vote-poll"),
    path("vote/<uuid:pk>/<uuid:image>/", votes.cast, name="vote-cast"),
    path("vote/<uuid:pk>/<uuid:image>/undo/", votes.undo, name="vote-undo"),
    path("vote/<uuid:pk>/<uuid:image>/photo", votes.photo, name="vote-photo"),
    path("captions/cancel/", captions.cancel_all, name="caption-cancel-all"),
    path("captions/<uuid:pk>/correct/", captions.correct, name="caption-correct"),
    path("captions/<uuid:pk>/retry/", captions.retry, name="caption-retry"),
    path("captions/<uuid:pk>/cancel/", captions.cancel, name="caption-cancel"),
    path("captions/<uuid:pk>/delete/", captions.delete, name="caption-delete"),
]
