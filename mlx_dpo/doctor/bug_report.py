"""Facts and results as Markdown for a bug report, without secrets and without names of people and machines."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mlx_dpo.doctor.check import CheckResult
from mlx_dpo.doctor.machine_facts import MachineFacts
from mlx_dpo.utils.hub_client import redact_secrets

MIN_HOST_LENGTH = 4  # a shorter name would be found in other words
_NO_NAMES = {"localhost", "root"}


def bug_report(facts: MachineFacts, results: Iterable[CheckResult], *, is_complete: bool = True) -> str:
    """The text of the report.

    Args:
        facts: what is known of the machine.
        results: the checks that were run.
        is_complete: whether all were.
    """
    lines = ["### mlx-dpo doctor", "", "| machine | |", "| --- | --- |"]
    lines += [f"| {_cell(label)} | {_cell(text)} |" for label, text in facts.lines().items()]
    lines += ["", "| check | result | detail | seconds |", "| --- | --- | --- | ---: |"]
    for result in results:
        outcome = result.outcome
        cells = (result.name, outcome.status.value, outcome.detail, f"{result.seconds:.1f}")
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    if not is_complete:
        lines += ["", "Stopped before all checks were run."]
    return without_private_names("\n".join(lines))


def without_private_names(text: str) -> str:
    """A text without secrets, with ~ for the home directory, and without the names of the user and of this machine."""
    text = redact_secrets(text)
    for home in sorted(_home_folders(), key=len, reverse=True):
        text = re.sub(rf"{re.escape(home)}(?=$|[/\s'\",;:)|\]])", "~", text)
    for user in _user_names():
        text = re.sub(rf"(?<=/){re.escape(user)}(?=$|[/\s'\",;:)|\]])", "USER", text)
    for host in sorted(_host_names(), key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


def _home_folders() -> set[str]:
    folders = set()
    with suppress(RuntimeError, OSError):
        home = Path.home()
        folders = {str(home), str(home.resolve())}
    return folders - {"/"}


def _user_names() -> set[str]:
    names = {Path(home).name for home in _home_folders()}
    with suppress(KeyError, OSError):  # a user without a name, as in a container
        names.add(getpass.getuser())
    return names - _NO_NAMES - {""}


def _host_names() -> set[str]:
    from huggingface_hub import constants

    from mlx_dpo.utils.safe_text import url_origin

    name = socket.gethostname()
    names = {name, name.partition(".")[0]}
    endpoint = url_origin(constants.ENDPOINT).partition("://")[2]
    if endpoint != "huggingface.co":  # HF_ENDPOINT: a mirror, maybe a company's
        names |= {endpoint, endpoint.partition(":")[0]}
    return {name for name in names if len(name) >= MIN_HOST_LENGTH} - _NO_NAMES


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
