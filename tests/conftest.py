"""How the tests are run; what they share is in `fixtures.py`."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import django
import pytest

# Here and not in pyproject.toml: the settings read the environment once, and pytest-django would load them too early.
HOME = tempfile.mkdtemp(prefix="clipcap-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "DJANGO_SETTINGS_MODULE": "clipcap_site.settings",
    "CLIPCAP_DEVELOPMENT": "1",
    "CLIPCAP_HOME": HOME,
    "CLIPCAP_ANONYMOUS": "1",
    "CLIPCAP_JAVA_METRICS": "0",  # starting Java takes seconds; tests/test_evaluation.py does it
    "OMP_NUM_THREADS": "1",  # of processes that tests start: beside other tests, threads wait for each other, and spin
}
os.environ.setdefault("CLIPCAP_TESTS_HOME", HOME)  # of the first process of a parallel run, for what all share
os.mkdir(f"{HOME}/static")  # noqa: PTH102 (WhiteNoise warns where there is none)
django.setup()

# What tests share fails with the values in it, as they do themselves.
SHARED = (
    "addresses",
    "fixtures",
    "machine",
    "people",
    "servers",
    "stack",
    *(path.parent.name for path in Path(__file__).parent.glob("*/conftest.py")),
)
pytest.register_assert_rewrite(*(f"tests.{name}" for name in SHARED))


def pytest_configure(config: pytest.Config) -> None:
    """Load what tests need, in each process that runs some; of a parallel run, one process only hands them out.

    Each of the others has a home of its own: with this name inherited, pytest-django would load the settings, and with
    them this process's home, before its own conftest.py is read.
    """
    if config.getoption("numprocesses", None):
        del os.environ["DJANGO_SETTINGS_MODULE"]
    else:
        config.pluginmanager.import_plugin("tests.fixtures")


# Files that take three quarters of a minute or more, the longest first. A run in several processes begins with them, so
# that none of these is left for one process while the others have nothing to do.
LONGEST = (
    *("every_page", "faults", "production", "demo", "admin_browser", "benchmarks", "hosts", "api_schema", "releases"),
    *("page_input", "stored_pictures", "migrations", "run_script", "documents", "browser_captions", "training"),
    *("worker_faults", "in_the_browser", "browser_admin", "datasets_interrupted", "trainer_in_processes", "bundle"),
    "trainer_on_machines",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Let no garbage collection look through the libraries again: with torch and Django loaded, that is a quarter of
    what tests of pages and migrations take."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`./run screenshots FOLDER` asks for pictures of the pages that a test opens anyway; tests/test_hosts.py has few
    captions written, and more if it is asked to."""
    parser.addoption("--screenshots", metavar="FOLDER", help="keep a picture of every page there")
    parser.addoption("--page", metavar="NAME", action="append", default=[], help="of this page alone; may be repeated")
    parser.addoption("--captions", type=int, default=270, metavar="N", help="that workers on two hosts write (270)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CLIPCAP_NO_SKIPS=1, as in continuous integration, a test that is skipped has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CLIPCAP_NO_SKIPS") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything is to be tested: {report.longrepr}"
    return report
