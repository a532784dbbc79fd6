"""Lists and forms of the admin: moments as on all pages, statuses in colour, photos picked by looking at them."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.exceptions import FieldDoesNotExist
from django.db.models import DateTimeField, QuerySet
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from captioner import uploads
from captioner.models import Image, Style
from tests.admin.rows import make_captions, make_run
from tests.people import client_of
from training.models import Example

COCO = Path(__file__).parents[2] / "examples" / "coco_cc"
EVERY = [pytest.param(model, id=model._meta.label) for model in admin.site._registry]

pytestmark = pytest.mark.django_db


@pytest.fixture
def request_of_boss(boss: Client, rf: RequestFactory, django_user_model: Any) -> HttpRequest:
    request = rf.get("/")
    request.user = django_user_model.objects.get(username="boss")
    return request


@pytest.mark.parametrize("model", EVERY)
def test_no_list_shows_a_moment_or_a_status_in_another_way(model: Any, request_of_boss: HttpRequest) -> None:
    for column in admin.site._registry[model].get_list_display(request_of_boss):
        try:
            field = model._meta.get_field(column) if isinstance(column, str) else None
        except FieldDoesNotExist:
            continue
        assert not isinstance(field, DateTimeField), column
        assert column not in ("status", "verdict")


def test_lists_show_moments_and_statuses_as_pages_do(style: Style, images: list[Image], boss: Client) -> None:
    make_captions(style, images, 2)
    make_captions(style, images, 1, status="failed", text="", error_code="x", error_detail="no")
    page = boss.get(reverse("admin:captioner_caption_changelist")).content.decode()
    assert re.search(r'field-created_at[^>]*><time datetime="[^"]+" title="[^"]+">', page)
    assert page.count('<span class="state succeeded">Succeeded</span>') == 2
    assert '<span class="state failed">Failed</span>' in page
    assert "sortable" in re.findall(r'<th[^>]*class="([^"]*column-created_at[^"]*)"', page)[0]
    newest_last = boss.get(reverse("admin:captioner_caption_changelist"), {"o": "7"}).content.decode()
    assert newest_last.index("Failed</span>") != page.index("Failed</span>")


def test_a_run_that_is_judged_has_its_verdict_in_colour(style: Style, boss: Client) -> None:
    make_run(style, status="canceled", finished_at=timezone.now(), verdict="worse")
    page = boss.get(reverse("admin:training_trainingrun_changelist")).content.decode()
    assert '<span class="state verdict-worse">Worse</span>' in page


def test_the_photo_of_an_example_is_picked_by_looking_at_it(style: Style, media: Path, boss: Client) -> None:
    photos = [uploads.store(path.read_bytes()) for path in sorted(COCO.glob("*.jpg"))[:3]]
    address = reverse("admin:training_example_add")
    page = boss.get(address).content.decode()
    for photo in photos:
        thumbnail = reverse("image-thumbnail", args=[photo.pk])
        assert re.search(
            rf'<input type="radio" name="image" value="{photo.pk}"[^>]*>\s*<img[^>]*src="{thumbnail}"', page
        )
    own = boss.get(reverse("admin:captioner_image_change", args=[photos[1].pk])).content.decode()
    assert f"{address}?image={photos[1].pk}" in own
    page = boss.get(f"{address}?image={photos[1].pk}").content.decode()
    assert re.search(rf'value="{photos[1].pk}"[^>]* checked', page)
    assert boss.get(f"{address}?image=nonsense").status_code == 200
    boss.post(address, {"style": style.pk, "image": str(photos[1].pk), "text": "two dogs"})
    example = Example.objects.get()
    assert example.image == photos[1]
    assert boss.get(reverse("admin:training_example_change", args=[example.pk])).status_code == 200


@pytest.mark.parametrize("model", EVERY)
def test_every_empty_list_says_in_one_sentence_what_to_do_and_leads_there(model: Any, boss: Client) -> None:
    if model._meta.label == "auth.User":  # never empty for who can open it
        return
    QuerySet(model).delete()  # not by its manager: the audit log's keeps all
    if model is not Style:
        Style.objects.create(slug="plain", name="Plain")
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    (said,) = re.findall(r'<p class="nothing">(.*?)</p>', boss.get(address).content.decode())
    (to,) = re.findall(r'<a href="([^"]+)">', said)
    assert boss.get(to).status_code == 200
    words = re.sub(r"<[^>]+>", "", said)
    assert re.fullmatch(r"[A-Z].{20,140}\.", words)
    assert words.count(". ") == 0
    nothing = boss.get(address, {"q": "nowhere"}).content.decode()
    assert '<p class="nothing">Nothing matches. <a href="?">Show all</a>.</p>' in nothing
    viewer = User.objects.create_user("vera", is_staff=True)
    seen = [f"view_{one._meta.model_name}" for one in admin.site._registry]
    viewer.user_permissions.set(Permission.objects.filter(codename__in=seen))
    looking = client_of(viewer)
    for shown in re.findall(r'<p class="nothing">(.*?)</p>', looking.get(address).content.decode()):
        assert re.sub(r"<[^>]+>", "", shown) == words
        for link in re.findall(r'<a href="([^"]+)">', shown):
            assert looking.get(link).status_code == 200, "nobody is led to where they may not go"
