from django.contrib.admin.apps import AdminConfig
from django_otp.plugins.otp_totp.apps import DefaultConfig as TotpConfig


class SiteAdminConfig(AdminConfig):
    """Django's admin with our dashboard as its first page."""

    default_site = "clipcap_site.admin.Site"


class SecondFactorConfig(TotpConfig):  # type: ignore[misc]  # the package has no types
    """Authenticator apps, under a heading that says what they are for."""

    verbose_name = "Second factor"
