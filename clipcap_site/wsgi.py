"""What a WSGI server runs: `clipcap_site.wsgi:application`."""

import gc
import os

from django.core.wsgi import get_wsgi_application
from django.urls import get_resolver

os.environ.setdefault("CLIPCAP_STATEMENT_SECONDS", "15")  # nobody waits longer for a page
# numpy's threads wait for each other in loops: beside other work, a search by meaning took them five times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")
application = get_wsgi_application()
_ = get_resolver().url_patterns  # or the first visitor waits until every page's module is loaded
# What is loaded by now stays. Looking for garbage among it would cost whoever asks at that moment a tenth of a second.
gc.collect()
gc.freeze()
