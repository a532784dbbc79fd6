"""How gunicorn runs this site, unless its command line says otherwise; read when it is started in this folder."""

import os

worker_class = "clipcap_site.web.Worker"
threads = int(os.environ.get("CLIPCAP_WEB_THREADS") or 16)
control_socket_disable = True  # nobody is told of it, and two sites on one machine would share it
