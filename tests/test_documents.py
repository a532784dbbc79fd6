"""The documents as a site: it is built without complaint, shows all of them, and works without a network."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from django.core.management import get_commands
from playwright.sync_api import Browser, Route

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DOCUMENTS = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "models/base/README.md", ROOT / "benchmarks/README.md"]

# Elements that make a browser fetch what an attribute names, but for links, which only people follow.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "embed": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly, by a Python that can import nothing of the project and none of its models."""
    folder = tmp_path_factory.mktemp("site")
    forbidden = "import sys; sys.modules.update(torch=None, django=None, clipcap=None, captioner=None, training=None)\n"
    build = "from mkdocs.__main__ import cli; cli()"
    command = [sys.executable, "-P", "-c", forbidden + build, "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a page makes the browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        followed = tag == "link" and given.get("rel") in ("canonical", "prev", "next")
        named = given.get(FETCHED.get(tag, "href" if tag == "link" and not followed else ""))
        self.addresses += [address for address in (named, given.get("srcset")) if address]


def fetched(page: str) -> list[str]:
    parser = Fetched()
    parser.feed(page)
    return parser.addresses


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    outside = {a for page in pages for a in fetched(page.read_text()) if re.match(r"(?i)[a-z]+:|//", a)}
    assert not {address for address in outside if not address.startswith("data:")}


def test_no_style_fetches_anything_from_another_host(site: Path) -> None:
    for style in [*site.rglob("*.css"), *site.rglob("*.html")]:
        assert not re.search(r"(?i)(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


def test_what_a_page_fetches_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # shown at any address, so its own are absolute
            continue
        for address in fetched(page.read_text()):
            if not address.startswith("data:"):
                assert (page.parent / address.split("?")[0]).is_file(), f"{page} fetches {address}"


def listed(entries: object) -> Iterator[str]:
    """The pages in a navigation of mkdocs."""
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        for entry in entries.values():
            yield from listed(entry)
    elif isinstance(entries, list):
        for entry in entries:
            yield from listed(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = sorted(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert navigation == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_decision_is_in_the_index_under_its_title() -> None:
    index = (DOCS / "decisions/index.md").read_text()
    decisions = [path for path in (DOCS / "decisions").glob("*.md") if path.name != "index.md"]
    assert decisions
    for path in decisions:
        title = path.read_text().splitlines()[0].removeprefix("# ")
        assert f"- [{title}]({path.name})" in index


def test_the_reference_has_the_docstrings_of_the_packages(site: Path) -> None:
    for package, name in {"clipcap": "Captioner", "captioner": "request_captions", "training": "start_run"}.items():
        page = (site / f"reference/{package}.html").read_text()
        assert re.search(rf'id="{package}\.[\w.]*\b{name}"', page), f"{package} has no {name}"


def test_every_setting_that_a_document_names_exists() -> None:
    settings = (ROOT / "clipcap_site/settings.py").read_text()
    for path in DOCUMENTS:
        named = set(re.findall(r"\bCLIPCAP_[A-Z0-9_]+\b", path.read_text()))
        assert not {name for name in named if f'"{name}"' not in settings}, path


def test_every_command_that_a_document_names_exists() -> None:
    usage = (ROOT / "run").read_text()
    for path in DOCUMENTS:
        for command, argument in re.findall(r"\./run ([a-z]+)(?: ([a-z_]+))?", path.read_text()):
            assert re.search(rf"^    (.* \| )?{command}( \| .*)?\)$", usage, re.MULTILINE), f"{path}: ./run {command}"
            assert command != "manage" or not argument or argument in get_commands(), f"{path}: manage {argument}"


def test_the_site_is_searched_when_it_is_opened_from_disk_without_a_network(site: Path, browser: Browser) -> None:
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    page = browser.new_page()
    page.route(re.compile("^(?!file:|data:|blob:)"), refuse)
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("heartbeat")
    page.locator(".md-search-result__link", has_text="Leases").first.click()
    page.wait_for_url(re.compile("concepts/leases.html"))
    page.close()
    assert not asked


def test_pages_fit_a_phone(site: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, java_script_enabled=False)
    for path in sorted(site.rglob("*.html")):
        if path.parent.name != "decisions" or path.name == "index.html":  # those are text alone
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.close()


def test_the_example_of_the_library_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "guide/library.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(code, {})
    factual, romantic = capsys.readouterr().out.splitlines()
    assert "skate" in factual
    assert romantic != factual


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (DOCS / "project/faults.md").read_text())
    assert len(named) > 100
    missing = [(file, name) for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []
