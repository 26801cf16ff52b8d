"""What the nightly workflow does with its issue, by a program in place of GitHub's command line gh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / ".ci" / "update-issue"
GH = """#!/bin/sh
echo "$*" >> {calls}
[ "$1 $2" != "issue list" ] || printf '%s' '{number}'
while [ $# -gt 0 ]; do [ "$1" != --body-file ] || cp "$2" {body}; shift; done
"""


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "mlx-lm-main.md").write_text("## mlx-lm main\n\n| `llama` | any_prompts | none |\n")
    return folder


def update_issue(tmp_path: Path, result: str, reports: Path, number: str) -> tuple[list[str], str]:
    """The calls of gh, without the first, which lists issues, and the text of the issue."""
    calls, body = tmp_path / "calls", tmp_path / "body"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gh").write_text(GH.format(calls=calls, body=body, number=number))
    (tmp_path / "bin" / "gh").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RUN_URL": "https://example.org/runs/7"}
    subprocess.run([str(SCRIPT), result, str(reports)], env=environment, check=True, capture_output=True)
    first, *others = calls.read_text().splitlines()
    assert first.startswith("issue list --state open --label mlx-lm-nightly")
    return others, body.read_text() if body.exists() else ""


def test_the_first_failure_opens_an_issue(tmp_path: Path, reports: Path) -> None:
    calls, body = update_issue(tmp_path, "failure", reports, number="")
    assert [call.split()[:2] for call in calls] == [["label", "create"], ["issue", "create"]]
    assert "https://example.org/runs/7" in body and "| `llama` | any_prompts | none |" in body


def test_the_next_failure_updates_it(tmp_path: Path, reports: Path) -> None:
    calls, body = update_issue(tmp_path, "failure", reports, number="12")
    assert [call.split()[:3] for call in calls] == [["issue", "edit", "12"]] and "llama" in body


def test_a_failure_without_report_is_an_issue_too(tmp_path: Path) -> None:
    _, body = update_issue(tmp_path, "failure", tmp_path / "none", number="")
    assert "ended with: failure" in body


@pytest.mark.parametrize("number", ["", "12"])
def test_success_closes_it(tmp_path: Path, number: str) -> None:
    calls, _ = update_issue(tmp_path, "success", tmp_path / "none", number)
    assert [call.split()[:3] for call in calls] == ([["issue", "close", "12"]] if number else [])
