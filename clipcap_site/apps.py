from django.contrib.admin.apps import AdminConfig


class SiteAdminConfig(AdminConfig):
    """Django's admin with our dashboard as its first page."""

    default_site = "clipcap_site.admin.Site"
