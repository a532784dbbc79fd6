"""The URLs of accounts."""

from django.contrib.auth.views import LogoutView
from django.urls import path

from accounts import password_reset, single_sign_on, views

urlpatterns = [
    path("tokens/", views.tokens, name="tokens"),
    path("password/", views.Password.as_view(), name="password"),
    path("password/forgotten/", password_reset.Forgotten.as_view(), name="password-forgotten"),
    path("password/mail/", password_reset.MailSent.as_view(), name="password-mail-sent"),
    path("password/new/<uidb64>/<token>/", password_reset.NewPassword.as_view(), name="password-new"),
    path("second-factor/", views.second_factor, name="second-factor"),
    path("sign-in/", views.SignIn.as_view(redirect_authenticated_user=True), name="login"),
    path("sign-in/single/", single_sign_on.leave, name="single-sign-on"),
    path("sign-in/single/back/", single_sign_on.Return.as_view(), name="single-sign-on-back"),
    path("sign-out/", LogoutView.as_view(), name="logout"),
]
