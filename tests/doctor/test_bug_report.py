"""The text for a bug report has the facts and the results, and names no person and no machine."""

from __future__ import annotations

import dataclasses
import getpass
import socket
from pathlib import Path

import pytest

from mlx_dpo.doctor.bug_report import bug_report, without_private_names
from mlx_dpo.doctor.check import CheckResult, failed, passed
from tests.doctor.stand_ins import mac_machine


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/alice"))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-mac.local")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://bob:secret@hub.example.com:8080/x")
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")


@pytest.mark.usefixtures("person")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/Users/alice/.cache can't be", "~/.cache can't be"),
        ("'/Users/alice'", "'~'"),
        ("/Users/alicea/x", "/Users/alicea/x"),
        ("/Volumes/alice/x and alice the name", "/Volumes/USER/x and alice the name"),
        ("alices-mac.local, alices-mac: hub.example.com:8080", "HOST, HOST: HOST"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "hf_***"),
        ("a-token-of-another-form", "hf_***"),
        ("python 3.12.4, mlx 0.32.4, /usr/bin/g++", "python 3.12.4, mlx 0.32.4, /usr/bin/g++"),
    ],
)
def test_private_names(text: str, expected: str) -> None:
    assert without_private_names(text) == expected


@pytest.mark.usefixtures("person")
def test_the_report_is_markdown() -> None:
    results = [
        CheckResult("mlx", "environment", passed("Metal"), 0.25),
        CheckResult("disk space", "environment", failed("a | b\nc in /Users/alice/x", "advice"), 0.0),
    ]
    facts = dataclasses.replace(mac_machine(wired_limit_mb="24576"), is_logged_in=True)
    assert bug_report(facts, results, is_complete=False).endswith("Stopped before all checks were run.")
    lines = bug_report(facts, results).splitlines()
    assert "| mlx | passed | Metal | 0.2 |" in lines
    assert "| disk space | failed | a \\| b c in ~/x | 0.0 |" in lines
    assert "| wired limit | iogpu.wired_limit_mb=24576 |" in lines and "| Hub | logged in, offline |" in lines
    assert "| chip | Apple M1 Max, 10 (8 performance, 2 efficiency) cores, 34.4 GB of memory |" in lines
