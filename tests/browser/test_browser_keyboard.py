"""A photo on its way from its upload to a promoted version, by a person without a mouse."""

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from captioner import services
from captioner.models import Caption, Correction, MapperVersion, Style
from tests.admin.rows import SHIPPED
from tests.browser.visits import PHOTOS, reach

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.small_models]


@pytest.mark.usefixtures("worker")
def test_keyboard_alone_uploads_corrects_labels_and_promotes(page: Page, styles: dict[str, Style]) -> None:
    User.objects.create_superuser("ada", password="lovelace")
    version = services.register_version(style=styles["factual"], path=SHIPPED, origin=MapperVersion.Origin.TRAINED)
    press, write = page.keyboard.press, page.keyboard.type

    page.goto("/sign-in/")
    reach(page, page.get_by_label("User name"))
    write("ada")
    reach(page, page.get_by_label("Password"))
    write("lovelace")
    press("Enter")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()

    page.on("filechooser", lambda chooser: None)  # so that no dialog opens in the browser itself
    page.goto("/")  # upload
    reach(page, page.locator("#photos"))
    with page.expect_file_chooser() as chooser:
        press("Enter")
    chooser.value.set_files(PHOTOS[:2])
    expect(page.locator(".caption .text")).to_have_count(2)

    wrong = page.locator(".caption").first  # correct
    reach(page, wrong.locator("summary", has_text="Edit"))
    press("Enter")
    reach(page, wrong.get_by_role("textbox"))
    press("ControlOrMeta+a")
    write("two dogs on a sofa")
    reach(page, wrong.get_by_role("button", name="Save correction"))
    press("Enter")
    expect(page.locator(".caption .text").first).to_have_text("two dogs on a sofa")
    expect(page.locator(".caption:focus")).to_have_count(1)  # the focus stays where the person is

    reach(page, page.get_by_role("link", name="Label", exact=True))  # label
    press("Enter")
    asked = page.locator(".label .text")
    expect(asked).to_have_text(Caption.objects.exclude(corrections__text="two dogs on a sofa").get().text)
    page.wait_for_load_state()  # before its scripts are there, a key is not heard
    press("f")
    expect(page.get_by_role("heading", name="Nothing is left to label")).to_be_visible()
    assert Correction.objects.count() == 2

    page.goto(f"/admin/captioner/mapperversion/{version.pk}/change/")  # promote
    reach(page, page.get_by_role("link", name="Promote…"))
    press("Enter")
    reach(page, page.get_by_label("Reason"))
    write("it reads better")
    reach(page, page.get_by_role("button", name="Put in service"))
    press("Enter")
    expect(page.locator(".messagelist")).to_contain_text("v2 is in service")
    assert styles["factual"].version_in_service == version
