"""A new password for people who have forgotten theirs, by a link in a mail. Offered where a mail server is set."""

from __future__ import annotations

import threading
from typing import Any

from axes.utils import reset as unlock
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import views
from django.contrib.auth.forms import PasswordResetForm
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse_lazy

from accounts.throttles import address_of, count_password_mail, count_sign_in


class MailForm(PasswordResetForm):
    """The email address of an account."""

    def send_mail(self, *arguments: Any, **named: Any) -> None:
        """Send the mail in a thread of its own: the answer comes as fast as where there is no account to send it to."""
        threading.Thread(target=super().send_mail, args=arguments, kwargs=named).start()


class Offered:
    """A page that exists only where mails can be sent."""

    def dispatch(self, request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
        if not settings.PASSWORD_RESET:
            raise Http404("no mail server is set")
        answer: HttpResponseBase = super().dispatch(request, *arguments, **named)  # type: ignore[misc]
        return answer


class Forgotten(Offered, views.PasswordResetView):
    """Ask for the mail. The answer is the same whether there is such an account or not."""

    form_class = MailForm
    template_name = "accounts/forgotten.html"
    subject_template_name = "accounts/password_mail_subject.txt"
    email_template_name = "accounts/password_mail.txt"
    success_url = reverse_lazy("password-mail-sent")

    def form_valid(self, form: Any) -> HttpResponse:
        """Send it.

        Raises:
            Refused: this address asked too often, for this account or for any.
        """
        count_password_mail(self.request, form.cleaned_data["email"])
        return super().form_valid(form)


class MailSent(Offered, views.PasswordResetDoneView):
    """Where to look for the mail."""

    template_name = "accounts/password_mail_sent.html"


class NewPassword(Offered, views.PasswordResetConfirmView):
    """Set a new password by the link of a mail. Sessions and tokens of the account end; nobody is signed in by it."""

    template_name = "accounts/new_password.html"
    success_url = reverse_lazy("login")

    def post(self, request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponse:
        """Set it.

        Raises:
            Refused: there were too many tries from this address.
        """
        count_sign_in(request)
        return super().post(request, *arguments, **named)

    def form_valid(self, form: Any) -> HttpResponse:
        answer = super().form_valid(form)
        unlock(username=form.user.get_username(), ip=address_of(self.request))  # whoever forgot it has tried before
        messages.success(self.request, "Your password was changed. Sign in with the new one.")
        return answer
