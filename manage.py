#!/usr/bin/env python3
"""Django's command line, with this site's settings: `./run manage COMMAND`."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clipcap_site.settings")
    try:
        try:
            execute_from_command_line(sys.argv)
        finally:  # what ends by sys.exit, as help does, has not been written yet
            sys.stdout.flush()
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")
    except BrokenPipeError:  # whoever read has read enough; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
