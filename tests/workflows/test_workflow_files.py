"""The workflows of GitHub: their steps are commands that exist here, with few permissions, pinned and limited in time.

`make lint-workflows` has actionlint and zizmor read them too.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROGRAMS = {"gh", ".venv/bin/mlx-dpo"}  # besides make and what is in .ci/
MAY_WRITE = {
    ("release.yml", "github", "contents"),
    ("release.yml", "pypi", "id-token"),
    ("docs.yml", "deploy", "pages"),
    ("docs.yml", "deploy", "id-token"),
    ("nightly.yml", "issue", "issues"),
}


def load(file: Path) -> dict[Any, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(key: str) -> list[tuple[str, Any]]:
    """File names and what the steps of their jobs have under a key."""
    return [
        (file.name, step[key])
        for file in FILES
        for job in load(file)["jobs"].values()
        for step in job["steps"]
        if key in step
    ]


def test_there_are_workflows() -> None:
    assert [file.name for file in FILES] == ["ci.yml", "docs.yml", "nightly.yml", "release.yml"]


@pytest.mark.parametrize("command", sorted({command for _, command in steps("run")}))
def test_commands_exist(command: str) -> None:
    words = shlex.split(command.replace("$(ls dist/*.whl)", "dist/mlx_dpo.whl"))
    if words[0] == "make":
        subprocess.run([*words, "--dry-run", "--always-make"], cwd=ROOT, check=True, capture_output=True)
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).stat().st_mode & 0o111
    else:
        assert words[0] in PROGRAMS


def test_actions_are_pinned_to_commits() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    uses = re.findall(r"uses: (.*)$", text, re.MULTILINE)
    assert len(uses) > 10
    assert [use for use in uses if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []
    assert len(set(uses)) == len({use.partition("@")[0] for use in uses}), "one version of each action"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_little_is_permitted_and_nothing_hangs(file: Path) -> None:
    workflow = load(file)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "concurrency" in workflow
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        written = {key for key, value in job.get("permissions", {}).items() if value != "read"}
        assert {(file.name, name, key) for key in written} <= MAY_WRITE, name


def test_checkouts_leave_no_token_behind() -> None:
    checkouts = [
        step
        for file in FILES
        for job in load(file)["jobs"].values()
        for step in job["steps"]
        if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert checkouts and all(step["with"]["persist-credentials"] is False for step in checkouts)
