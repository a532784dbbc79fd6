"""A second factor for staff: the code of an authenticator app (TOTP), asked for after the password."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qrcode
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django_otp import login
from django_otp.plugins.otp_totp.models import TOTPDevice
from qrcode.image.svg import SvgPathImage

from captioner.api.problems import problem
from captioner.bodies import API
from captioner.errors import Refused


def device_of(user: Any) -> TOTPDevice | None:
    """The app whose codes the user has to give; None without one."""
    device: TOTPDevice | None = TOTPDevice.objects.filter(user=user, confirmed=True).first()
    return device


def is_verified(request: HttpRequest) -> bool:
    """Whether this session has given the code."""
    user: Any = request.user  # to which django_otp's middleware adds the method
    return bool(user.is_verified())


def new_device(user: Any) -> TOTPDevice:
    """What the user's app is to be shown, until a first code proves that it has it."""
    device: TOTPDevice = TOTPDevice.objects.get_or_create(user=user, confirmed=False, defaults={"name": "app"})[0]
    return device


def drawn(device: TOTPDevice) -> SafeString:
    """The device's secret for a camera, as SVG."""
    drawing: str = qrcode.make(device.config_url, image_factory=SvgPathImage).to_string(encoding="unicode")
    return SafeString(drawing)  # of squares alone


def enter(request: HttpRequest, code: str) -> None:
    """Take the code of the user's app; from then on this session is verified. The first code also confirms the app.

    Raises:
        Refused: it is not right now, or wrong ones came just before.
    """
    device = device_of(request.user) or new_device(request.user)
    if not device.verify_token("".join(code.split())):
        raise Refused("wrong_code", "this code is not valid now; wait for the next one and enter that", status=422)
    if not device.confirmed:
        device.confirmed = True
        device.save(update_fields=["confirmed"])
    login(request, device)


def remove(user: Any) -> None:
    """Turn off two-factor authentication for the user."""
    TOTPDevice.objects.filter(user=user).delete()


class SecondFactor:
    """Middleware: sessions of staff that still owe their code see nothing but the page that asks for it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        page = reverse("second-factor")
        if request.path in (page, reverse("logout")) or not _owes(request):
            return self.get_response(request)
        if request.path_info.startswith(API):
            return problem(403, "second_factor_required", f"enter the code from your authenticator app at {page} first")
        if request.headers.get("HX-Request"):
            return JsonResponse({}, status=403, headers={"HX-Redirect": page})
        back = request.get_full_path() if request.method == "GET" else reverse("home")
        return redirect(f"{page}?{urlencode({'next': back})}")


def _owes(request: HttpRequest) -> bool:
    user = request.user
    if not (user.is_authenticated and user.is_staff) or is_verified(request):
        return False
    return settings.SECOND_FACTOR or device_of(user) is not None
