"""What a WSGI server runs: `clipcap_site.wsgi:application`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("CLIPCAP_STATEMENT_SECONDS", "15")  # nobody waits longer for a page
# numpy's threads wait for each other in loops: beside other work, a search by meaning took them five times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")
application = get_wsgi_application()
