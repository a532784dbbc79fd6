"""What helps others to work on the project: hooks, workflows, templates, versions."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_hooks_before_a_commit_call_the_checks_of_the_project_and_fetch_nothing() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["language"], hook["entry"]) == ("local", "system", "./run check")
    valid = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    assert subprocess.run(valid, check=False).returncode == 0


def test_each_forge_runs_what_continuous_integration_runs_and_nothing_else() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert read(".gitlab-ci.yml")["test"]["script"] == ["bash .ci/run"]


def test_workflows_may_only_read() -> None:
    assert read(".github/workflows/ci.yml")["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["bug", "wish"])
def test_templates_of_issues_have_a_name_and_say_what_they_are_for(name: str) -> None:
    _, head, body = (ROOT / f".github/ISSUE_TEMPLATE/{name}.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about", "labels"}
    assert body.strip()


def test_the_changelog_begins_with_what_is_not_released_and_then_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", sections[1])


def test_every_change_in_the_changelog_is_in_a_group() -> None:
    groups = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(groups) <= {"Added", "Changed", "Fixed"}
    for section in re.split(r"^## .+$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]:
        assert not re.search(r"^- ", section.split("### ")[0], re.MULTILINE), "a change before the first group"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_what_is_named_in_the_documents_for_contributors_is_there(name: str) -> None:
    folders = r"(?:docs|tests|clipcap|captioner|training|clipcap_site|\.ci)/[\w./]*"
    named = re.findall(rf"`({folders}|[\w-]+\.(?:md|toml|txt))`", (ROOT / name).read_text())
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing
