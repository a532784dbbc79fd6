"""The settings of the site, which are those of production unless the environment asks for development.

Every setting is a variable of the environment; docs/settings.md lists them. With none but the first two the site
runs on SQLite, files and a broker that is a folder, all below `CLIPCAP_HOME`.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import environ
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from clipcap import options


class Environment(environ.Env):  # type: ignore[misc]  # it ships no types
    """Names the variable whose value makes no sense."""

    def get_value(self, var: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().get_value(var, *args, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(f"{var} cannot be {self.ENVIRON.get(var)!r}; see docs/settings.md") from error


os.umask(0o077)  # whatever a process of the service writes, wherever, is nobody else's to read

env = Environment()
BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = env.str("CLIPCAP_DEVELOPMENT", "") == "1"

SECRET_KEY = env.str("CLIPCAP_SECRET_KEY", "") or ("for development only" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "CLIPCAP_SECRET_KEY is not set. Set it to a long random string that is kept secret, such as one that "
        "`python3 -c 'import secrets; print(secrets.token_urlsafe(50))'` prints; on a developer's machine, set "
        "CLIPCAP_DEVELOPMENT=1 instead."
    )

HOME = Path(env.str("CLIPCAP_HOME", "") or BASE_DIR / "var").resolve()
MODELS = Path(env.str("CLIPCAP_MODELS", "") or BASE_DIR / "models" / "base").resolve()

ALLOWED_HOSTS = [host.strip() for host in env.str("CLIPCAP_ALLOWED_HOSTS", "").split(",") if host.strip()]
HTTPS = env.bool("CLIPCAP_HTTPS", not DEBUG)  # off only behind nothing, on a network that is trusted
CSRF_TRUSTED_ORIGINS = [f"https://{'*' * host.startswith('.')}{host}" for host in ALLOWED_HOSTS if host != "*"] * HTTPS
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
BEHIND_PROXY = env.bool("CLIPCAP_BEHIND_PROXY", False)  # one that sets X-Forwarded-For and X-Forwarded-Proto itself
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
SECURE_SSL_REDIRECT = HTTPS and not DEBUG
SECURE_HSTS_SECONDS = 30 * 24 * 3600 if HTTPS and not DEBUG else 0
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]  # HSTS for other names of the domain is not ours to decide
SECURE_REDIRECT_EXEMPT = [r"^api/health/"]  # load balancers ask for it without TLS

INSTALLED_APPS = [
    "clipcap_site.apps.SiteAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_htmx",
    "rest_framework",
    "knox",
    "django_filters",
    "drf_spectacular",
    "csp",
    "axes",
    "django_otp",
    "clipcap_site.apps.SecondFactorConfig",
    "captioner",
    "accounts",
    "training",
]

MIDDLEWARE = [
    "captioner.api.problems.Problems",
    "captioner.sane_input.SaneInput",
    "captioner.api.permissions.KnownMethods",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "accounts.second_factor.SecondFactor",
    "captioner.audit.Acting",
    "accounts.middleware.Refusals",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "clipcap_site.urls"
WSGI_APPLICATION = "clipcap_site.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:", "blob:"],
        "object-src": [NONE],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    }
}
SECURE_REFERRER_POLICY = "same-origin"

# SQLite with Django's defaults lost transactions under load: they read first and could not become writers.
# Whoever waits for an answer is told that there is none (wsgi.py); workers and commands wait for as long as it takes.
STATEMENT_SECONDS = env.float("CLIPCAP_STATEMENT_SECONDS", 0)
SQLITE = {
    "timeout": STATEMENT_SECONDS or 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
DATABASES: dict[str, Any] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HOME / "db.sqlite3"}}
if database_url := env.str("CLIPCAP_DATABASE_URL", ""):
    try:
        DATABASES["default"] = env.db_url_config(database_url)
        engine = DATABASES["default"]["ENGINE"]
    except (ImproperlyConfigured, KeyError, ValueError):
        engine = ""
    if engine not in ("django.db.backends.postgresql", "django.db.backends.sqlite3"):
        raise ImproperlyConfigured(  # without the value, which holds a password
            "CLIPCAP_DATABASE_URL is not a database URL; use one such as postgres://user:password@host:5432/name"
        )
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = SQLITE
else:
    DATABASES["default"] |= {"ENGINE": "clipcap_site.postgresql", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
    # Each side notices that the other is gone: rows that a dead host had locked would keep all workers waiting.
    session = {
        **{"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3},  # seconds
        "tcp_user_timeout": 20_000,  # milliseconds, as what follows
        "idle_in_transaction_session_timeout": 60_000,  # of a process that stands still while its host does not
    }
    given = DATABASES["default"].get("OPTIONS", {})
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 5,  # seconds, as those of the next two lines
        **{"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3},
        "tcp_user_timeout": 20_000,  # milliseconds
        **given,
    }
    if STATEMENT_SECONDS:
        session["statement_timeout"] = round(STATEMENT_SECONDS * 1000)
        DATABASES["default"]["OPTIONS"]["patience"] = STATEMENT_SECONDS + 2  # of a server that does not even say so
    asked = [f"-c {name}={value}" for name, value in session.items()]
    DATABASES["default"]["OPTIONS"]["options"] = " ".join([*asked, *filter(None, [given.get("options")])])

CACHES: dict[str, Any] = {
    "default": {"BACKEND": "clipcap_site.cache.FailOpen"},
    "shared": env.cache_url("CLIPCAP_CACHE_URL", default="locmemcache://"),
}
if "redis" in CACHES["shared"]["BACKEND"]:
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Broken
    from redis.retry import Retry

    CACHES["shared"]["OPTIONS"] = {
        **{"socket_connect_timeout": 0.5, "socket_timeout": 0.5},  # seconds
        "retry": Retry(NoBackoff(), 1, supported_errors=(Broken,)),  # for a connection that was closed while idle
        **CACHES["shared"].get("OPTIONS", {}),
    }

MEDIA_ROOT = HOME / "media"
S3_BUCKET = env.str("CLIPCAP_S3_BUCKET", "")
STORAGES: dict[str, Any] = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
if S3_BUCKET:  # credentials and region come from the environment, as boto3 reads it (AWS_ACCESS_KEY_ID …)
    from botocore.config import Config

    STORAGES["default"] = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": S3_BUCKET,
            "endpoint_url": env.str("CLIPCAP_S3_ENDPOINT", "") or None,
            # By itself boto3 waits for a minute, five times.
            "client_config": Config(connect_timeout=3, read_timeout=20, retries={"total_max_attempts": 2}),
        },
    }
if DEBUG:
    STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
WHITENOISE_USE_FINDERS = DEBUG
STATIC_URL = "static/"
STATIC_ROOT = HOME / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
FILE_UPLOAD_PERMISSIONS, FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o600, 0o700

LANGUAGE_CODE = "en"
TIME_ZONE = env.str("CLIPCAP_TIME_ZONE", "UTC")
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
AUTH_PASSWORD_VALIDATORS.append({"NAME": "accounts.validators.EndsTokens"})
PASSWORD_HASHERS = ["accounts.hashers.BoundedPBKDF2"]
AUTHENTICATION_BACKENDS = [
    "accounts.backends.AddressLimit",
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
SECOND_FACTOR = env.bool("CLIPCAP_SECOND_FACTOR", False)  # whether staff have to have one
OTP_TOTP_ISSUER = "ClipCap"
OTP_ADMIN_HIDE_SENSITIVE_DATA = True
ADDRESS_RATES = {
    "sign_in": env.str("CLIPCAP_THROTTLE_SIGN_IN", "60/minute"),
    "bad_token": "60/minute",
    "password_mail": "5/hour",
}
# Who gets an account's password wrong too often is kept from it at that address for a while. The account's owner, at
# another address, is not; nor are others at that one.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
AXES_CLIENT_IP_CALLABLE = "accounts.throttles.address_of"
AXES_LOCKOUT_CALLABLE = "accounts.views.locked_out"

# Single sign-on by OpenID Connect. What the provider calls these, its /.well-known/openid-configuration says.
OIDC_ISSUER = env.str("CLIPCAP_OIDC_ISSUER", "")
OIDC_NAME = env.str("CLIPCAP_OIDC_NAME", "single sign-on")
if OIDC_ISSUER:
    AUTHENTICATION_BACKENDS.append("accounts.single_sign_on.SingleSignOn")
    OIDC_OP_AUTHORIZATION_ENDPOINT = env.str("CLIPCAP_OIDC_AUTHORIZATION_URL", "")
    OIDC_OP_TOKEN_ENDPOINT = env.str("CLIPCAP_OIDC_TOKEN_URL", "")
    OIDC_OP_USER_ENDPOINT = env.str("CLIPCAP_OIDC_USERINFO_URL", "")
    OIDC_OP_JWKS_ENDPOINT = env.str("CLIPCAP_OIDC_KEYS_URL", "")
    OIDC_RP_CLIENT_ID = env.str("CLIPCAP_OIDC_CLIENT_ID", "")
    OIDC_RP_CLIENT_SECRET = env.str("CLIPCAP_OIDC_CLIENT_SECRET", "")
    for name in ("AUTHORIZATION_URL", "TOKEN_URL", "USERINFO_URL", "KEYS_URL", "CLIENT_ID", "CLIENT_SECRET"):
        if not env.str(f"CLIPCAP_OIDC_{name}", ""):
            raise ImproperlyConfigured(
                f"CLIPCAP_OIDC_{name} is not set, and CLIPCAP_OIDC_ISSUER is; see docs/settings.md"
            )
OIDC_RP_SIGN_ALGO = "RS256"
OIDC_USE_PKCE = True
OIDC_TIMEOUT = 10  # seconds
OIDC_AUTHENTICATION_CALLBACK_URL = "single-sign-on-back"

EMAIL_TIMEOUT = 10  # seconds
PASSWORD_RESET_TIMEOUT = 3600  # seconds that the link in a mail is valid
if mail_url := env.str("CLIPCAP_MAIL_URL", ""):
    try:
        mail = env.email_url_config(mail_url)
    except (ImproperlyConfigured, KeyError, ValueError) as error:
        raise ImproperlyConfigured(  # without the value, which holds a password
            "CLIPCAP_MAIL_URL is not the URL of a mail server; use one such as smtp+tls://user:password@host:587"
        ) from error
    vars().update(mail, EMAIL_FILE_PATH=f"/{mail['EMAIL_FILE_PATH']}")  # whose slash it takes for none of the path
    DEFAULT_FROM_EMAIL = env.str("CLIPCAP_MAIL_FROM", "")
    if not DEFAULT_FROM_EMAIL:
        raise ImproperlyConfigured(
            "CLIPCAP_MAIL_FROM is not set; set it to the address that mails come from, such as captions@example.org"
        )
# A link in a mail leads to the host of the request, which has to be one of ours.
PASSWORD_RESET = bool(mail_url) and "*" not in ALLOWED_HOSTS

# Captioning
INDEX = HOME / "index"  # of photos, by what they show; each machine with a web process makes its own
ENCODER = env.str("CLIPCAP_ENCODER", f"local-dir:{MODELS / 'encoder'}")
LANGUAGE_MODEL = env.str("CLIPCAP_LANGUAGE_MODEL", f"local-dir:{MODELS / 'lm'}")
RERANKING = env.str("CLIPCAP_RERANKING", str(MODELS / "reranking.json"))
DEVICE = env.str("CLIPCAP_DEVICE", "auto")
THREADS = env.int("CLIPCAP_THREADS", 1)  # of a worker on the CPU; see docs/settings.md before raising it
BATCH_SIZE = env.int("CLIPCAP_BATCH_SIZE", 32)
TRAINING_PROCESSES = env.int("CLIPCAP_TRAINING_PROCESSES", 1)  # that train one style together
TRAINING_ADDRESS = env.str("CLIPCAP_TRAINING_ADDRESS", "")  # where a training worker listens for other machines
TRAINING_KEY = env.str("CLIPCAP_TRAINING_KEY", "")  # which they have to know
MODEL_CACHE_BYTES = env.int("CLIPCAP_MODEL_CACHE_BYTES", 0)  # of a worker's versions; 0 is a quarter of what is free
UNSURE_BELOW = env.float("CLIPCAP_UNSURE_BELOW", options.UNSURE_BELOW)
LABELLED_TWICE = env.float("CLIPCAP_LABELLED_TWICE", 0.1)  # share of the photos that two people label
ANONYMOUS = env.bool("CLIPCAP_ANONYMOUS", False)
JAVA_METRICS = env.bool("CLIPCAP_JAVA_METRICS", True)  # METEOR and SPICE after a training run, where Java is installed
DEADLINE = timedelta(seconds=env.int("CLIPCAP_DEADLINE_SECONDS", 86400))
LEASE = timedelta(seconds=env.float("CLIPCAP_LEASE_SECONDS", 30))  # how long the work of a lost worker waits
KEEP_RESULTS = timedelta(days=env.int("CLIPCAP_KEEP_DAYS", 0))  # 0 keeps them for good
MAX_QUEUED = env.int("CLIPCAP_MAX_QUEUED", 10_000)  # captions of one user, or one anonymous address
MAX_UPLOAD_BYTES = env.int("CLIPCAP_MAX_UPLOAD_BYTES", 20_000_000)
MAX_UPLOAD_PIXELS = env.int("CLIPCAP_MAX_UPLOAD_PIXELS", 50_000_000)
MAX_REQUEST_PIXELS = env.int("CLIPCAP_MAX_REQUEST_PIXELS", 300_000_000)  # of all pictures of one call
DECODING_PIXELS = env.int("CLIPCAP_DECODING_PIXELS", 50_000_000)  # at a time, in one web process
MAX_IMAGES_PER_REQUEST = env.int("CLIPCAP_MAX_IMAGES_PER_REQUEST", 50)
MAX_IMPORT_BYTES = env.int("CLIPCAP_MAX_IMPORT_BYTES", 4_000_000_000)  # of a file of examples, or of a mapper
MAX_REQUEST_BYTES = env.int("CLIPCAP_MAX_REQUEST_BYTES", 100_000_000)  # of all files of one call; they lie in memory
MAX_FORM_BYTES = 1_000_000  # of a form that takes no files
# Pages that take files, by name: photos, which lie in memory, or what is read piece by piece.
LONG_BODIES = {
    "upload": MAX_REQUEST_BYTES,
    "admin:captioner_mapperversion_compare": MAX_REQUEST_BYTES,
    "admin:captioner_mapperversion_import": MAX_IMPORT_BYTES,
    "admin:captioner_style_import": MAX_IMPORT_BYTES,
}
WEB_THREADS = env.int("CLIPCAP_WEB_THREADS", 16)  # of the web process; half of them may wait for captions
WEBHOOKS_TO_PRIVATE_NETWORKS = env.bool("CLIPCAP_WEBHOOKS_TO_PRIVATE_NETWORKS", False)
# Base64 in JSON is a third longer than the file.
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * MAX_UPLOAD_BYTES // 3 + 100_000
DATA_UPLOAD_MAX_NUMBER_FILES = MAX_IMAGES_PER_REQUEST

# Celery carries wake-up messages and nothing else: see captioner/tasks.py.
CELERY_BROKER_URL = env.str("CLIPCAP_BROKER_URL", "filesystem://localhost")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_DEFAULT_QUEUE = "captions"
if CELERY_BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
        "data_folder_in": str(HOME / "broker"),
        "data_folder_out": str(HOME / "broker"),
        "control_folder": str(HOME / "broker-control"),
        "store_processed": False,
        "polling_interval": 0.1,
    }
else:
    # A request must not wait for a broker that is down: the row is safe, and workers look for rows by themselves.
    CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_connect_timeout": 1, "socket_timeout": 30, "max_retries": 0}

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.ApiToken",
        "captioner.api.permissions.BrowserSession",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["captioner.api.permissions.MayUse"],
    "DEFAULT_THROTTLE_CLASSES": ["captioner.http.throttles.WritesThrottle"],
    "DEFAULT_RENDERER_CLASSES": ["captioner.api.renderers.StrictRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.NamespaceVersioning",
    "DEFAULT_VERSION": "v1",
    "DEFAULT_METADATA_CLASS": None,
    "URL_FORMAT_OVERRIDE": None,
    "NUM_PROXIES": int(BEHIND_PROXY),  # otherwise a caller could name any address as its own
    "DEFAULT_THROTTLE_RATES": {
        "anonymous": env.str("CLIPCAP_THROTTLE_ANONYMOUS", "60/minute"),
        "user": env.str("CLIPCAP_THROTTLE_USER", "1000/minute"),
    },
    "EXCEPTION_HANDLER": "captioner.api.problems.handle",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
REST_KNOX = {"TOKEN_TTL": None, "AUTH_HEADER_PREFIX": "Token"}
SPECTACULAR_SETTINGS = {
    "TITLE": "Captions in your own styles",
    "DESCRIPTION": "Upload an image, poll for its captions.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "DEFAULT_GENERATOR_CLASS": "captioner.api.schema_generator.OneAtATime",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api/",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "captioner.api.schema.add_problems",
    ],
    "ENUM_NAME_OVERRIDES": {
        "Status": "captioner.jobs.job.Status",
        "Method": "clipcap.options.METHODS",
        "BaseModelsStatus": "captioner.models.BaseModels.Status",
        "Verdict": "training.models.TrainingRun.Verdict",
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": "clipcap_site.logs.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "waitress.queue": {"level": "ERROR"},  # each request that waits for a thread
    }
    | {name: {"level": env.str("CLIPCAP_LOG_LEVEL", "INFO")} for name in ("captioner", "celery.worker")},
}
