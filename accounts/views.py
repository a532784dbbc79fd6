"""The pages on which people look after their accounts. What they do is in services.py."""

from __future__ import annotations

from base64 import b32encode
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView, PasswordChangeView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from accounts import second_factor as second
from accounts import services
from accounts.forms import TokenForm
from accounts.throttles import count_sign_in
from captioner.api.permissions import Scope
from captioner.errors import Refused
from captioner.web.pages import refusal

USUAL = {"scopes": [Scope.READ, Scope.CAPTION], "days": "365"}


@never_cache
@require_http_methods(["GET", "POST"])
@login_required
@sensitive_variables("token", "curl")
def tokens(request: HttpRequest) -> HttpResponse:
    """The user's API tokens. A new one is shown in the answer that makes it and never again: only its hash is kept."""
    if "delete" in request.POST:
        services.delete_token(request.user, request.POST["delete"])
        messages.success(request, "The token was deleted. Programs that use it no longer have access.")
        return redirect("tokens")
    form, token, made = TokenForm(request.POST or None, initial=USUAL), "", None
    if request.method == "POST" and form.is_valid():
        name, scopes = form.cleaned_data["name"], form.cleaned_data["scopes"]
        try:
            made, token = services.make_token(request.user, name=name, scopes=scopes, lifetime=form.lifetime())
            form = TokenForm(initial=USUAL)
        except Refused as error:
            form.add_error(None, error.detail)
    curl = (
        f"curl -s {request.build_absolute_uri(static('example.jpg'))} | curl -s -H 'Authorization: Token {token}' "
        f"-H 'Prefer: wait=30' -F image=@- -F style=all {request.build_absolute_uri('/api/captions/')}"
    )
    context = {"tokens": services.tokens_of(request.user), "form": form, "token": token, "made": made, "curl": curl}
    return render(request, "accounts/tokens.html", context)


class SignIn(LoginView):
    """Sign in, and what to do without a password."""

    def get_context_data(self, **named: Any) -> dict[str, Any]:
        provider = settings.OIDC_NAME if settings.OIDC_ISSUER else ""
        return super().get_context_data(password_reset=settings.PASSWORD_RESET, provider=provider, **named)


@method_decorator(never_cache, name="dispatch")
class Password(PasswordChangeView):
    """Change the password, given the old one. This signs out other browsers and deletes all tokens of the account."""

    template_name = "accounts/password.html"
    success_url = reverse_lazy("home")

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Change it.

        Raises:
            Refused: there were too many tries.
        """
        count_sign_in(request)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: Any) -> HttpResponse:
        answer = super().form_valid(form)
        messages.success(
            self.request,
            "Your password was changed. All other browsers were signed out, and your API tokens were deleted.",
        )
        return answer


@never_cache
@require_http_methods(["GET", "POST"])
@login_required
@sensitive_variables("secret")
def second_factor(request: HttpRequest) -> HttpResponse:
    """Set up an authenticator app, enter its code, or remove it."""
    device, error, verified = second.device_of(request.user), "", second.is_verified(request)
    if verified and "remove" in request.POST:
        second.remove(request.user)
        messages.success(request, "Two-factor authentication is off.")
        return redirect("home")
    if not verified and "code" in request.POST:
        try:
            second.enter(request, request.POST["code"])
        except Refused as refused:
            error = refused.detail
        else:
            back = request.GET.get("next", "")
            return redirect(back if url_has_allowed_host_and_scheme(back, {request.get_host()}) else "home")
    context = {"error": error, "verified": verified}
    if device is None:
        new = second.new_device(request.user)
        context |= {"drawing": second.drawn(new), "secret": b32encode(new.bin_key).decode()}
    return render(request, "accounts/second_factor.html", context)


def locked_out(request: HttpRequest, answer: HttpResponse | None, credentials: Any) -> HttpResponse:
    """Instead of the answer to a sign-in, after too many wrong passwords for one account from one address."""
    wait = int(settings.AXES_COOLOFF_TIME.total_seconds())
    detail = f"too many wrong passwords for this account from your address; try again in {wait // 60} minutes"
    return refusal(request, Refused("throttled", detail, status=429, wait=wait))
