"""The settings of the site, which are those of production unless the environment asks for development.

- `CLIPCAP_DEVELOPMENT=1` turns debugging on and makes up what is missing below. It is for the developer's machine only.
- `CLIPCAP_SECRET_KEY` signs what users get to hold. Production does not start without one.
- `CLIPCAP_ALLOWED_HOSTS` lists the names that the site answers to, separated by commas. With none, production answers
  no request.
"""

import os

from django.core.exceptions import ImproperlyConfigured

DEBUG = os.environ.get("CLIPCAP_DEVELOPMENT") == "1"

SECRET_KEY = os.environ.get("CLIPCAP_SECRET_KEY") or ("for development only" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "CLIPCAP_SECRET_KEY is not set. Set it to a long random string that is kept secret, such as one that "
        "`python3 -c 'import secrets; print(secrets.token_urlsafe(50))'` prints; on a developer's machine, set "
        "CLIPCAP_DEVELOPMENT=1 instead."
    )

ALLOWED_HOSTS = [host.strip() for host in os.environ.get("CLIPCAP_ALLOWED_HOSTS", "").split(",") if host.strip()]

MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
ROOT_URLCONF = "clipcap_site.urls"
WSGI_APPLICATION = "clipcap_site.wsgi.application"
