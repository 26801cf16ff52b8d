"""`mlx-dpo label` on the command line, with endpoints that fail, talk nonsense and stall."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import PAIRS, rows_of, write_rows
from tests.forked import start_command
from tests.judges.local_endpoint import KEY, Endpoint
from tests.judges.local_endpoint import endpoint as endpoint

ROWS = [{"prompt": f"Q{i}", "completions": ["bad", "good", "worse"]} for i in range(6)]
Run = Callable[..., CommandResult]


@pytest.fixture
def flags(tmp_path: Path, endpoint: Endpoint) -> list[object]:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    judge = ("--judge", endpoint.url, "--judge-model", "judge-1", "--judge-key-env", "JUDGE_KEY")
    return ["label", rows, *judge, "--output", tmp_path / "pairs.jsonl"]


def test_an_endpoint_labels_with_a_rubric(
    mlx_dpo: Run, flags: list[object], endpoint: Endpoint, tmp_path: Path
) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("MY RUBRIC {question} assistant A's answer]\n{first} / {second} [[A]] [[B]]")
    ran = mlx_dpo(*flags, "--rubric", rubric, "--json")
    summary = json.loads(ran.out)
    assert ran.code == 0 and summary["calls"] == len(endpoint.requests) == 36 and summary["rows"] == 6
    assert all(body["messages"][0]["content"].startswith("MY RUBRIC Q") for *_, body in endpoint.requests)
    assert {(row["chosen"], row["score_chosen"]) for row in rows_of(tmp_path / "pairs.jsonl")} == {("good", 1.0)}
    again = json.loads(mlx_dpo(*flags, "--rubric", rubric, "--json").out)
    assert (again["calls"], again["cache_hits"]) == (0, 36) and len(endpoint.requests) == 36
    assert KEY not in ran.out + ran.err


def test_an_endpoint_that_fails_midway(mlx_dpo: Run, flags: list[object], endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures = [*[None] * 20, *[(401, {}, "the key has expired")] * 9]
    ran = mlx_dpo(*flags)
    assert ran.code == 2 and "the key has expired" in ran.err and "verdicts of this run are kept" in ran.err
    requests_before, endpoint.failures = len(endpoint.requests), []
    ran = mlx_dpo(*flags, "--json")
    summary = json.loads(ran.out)
    assert ran.code == 0 and 16 <= summary["cache_hits"] <= 20
    assert summary["calls"] == 36 - summary["cache_hits"]
    assert (
        summary["calls"] <= len(endpoint.requests) - requests_before <= summary["calls"] + 3
    )  # those that were on their way
    assert len(rows_of(tmp_path / "pairs.jsonl")) == 6


def test_nonsense_is_no_verdict(mlx_dpo: Run, flags: list[object], endpoint: Endpoint, tmp_path: Path) -> None:
    message = json.dumps({"choices": [{"message": {"content": "I like both, [[D]]."}}]})
    endpoint.failures = [(200, {}, message)] * 36
    summary = json.loads(mlx_dpo(*flags, "--json").out)
    assert (summary["no_verdict"], summary["rows"], summary["pairs"]) == (18, 0, 0)
    assert not (tmp_path / "pairs.jsonl").read_bytes()


def interrupt(process: BaseProcess, output: Path) -> None:
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130 and "Traceback" not in output.read_text(), output.read_text()


def test_an_endpoint_that_stalls_can_be_interrupted(flags: list[object], endpoint: Endpoint, tmp_path: Path) -> None:
    """It would stall for a minute. What came before is kept."""
    endpoint.failures = [*[None] * 8, *["stall"] * 30]
    process = start_command(flags, tmp_path / "output")
    while len(endpoint.requests) < 12:
        time.sleep(0.02)
    interrupt(process, tmp_path / "output")
    endpoint.failures = []
    endpoint.stalled.set()
    requests_before = len(endpoint.requests)
    process = start_command(flags, tmp_path / "output")
    process.join(60)
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    assert len(endpoint.requests) - requests_before == 36 - 8 and len(rows_of(tmp_path / "pairs.jsonl")) == 6


def test_a_function_that_hangs_can_be_interrupted(tmp_path: Path) -> None:
    judge = tmp_path / "mine.py"
    touch = f"pathlib.Path({str(tmp_path / 'on')!r}).touch()"
    judge.write_text(f"import pathlib\ndef hang(p, a):\n    {touch}\n    while 1: pass")
    process = start_command(
        ["label", PAIRS, "--judge", f"{judge}:hang", "--output", tmp_path / "out"], tmp_path / "output"
    )
    while not (tmp_path / "on").exists():
        time.sleep(0.02)
    interrupt(process, tmp_path / "output")


def test_a_budget_that_is_spent(mlx_dpo: Run, flags: list[object], endpoint: Endpoint, tmp_path: Path) -> None:
    ran = mlx_dpo(*flags, "--max-calls", 20, "--json")
    summary = json.loads(ran.out)
    assert ran.code == 0 and (summary["calls"], summary["remaining"], summary["rows"]) == (18, 3, 3)
    assert "does not suffice for 3 more prompts" in ran.err
    table = mlx_dpo(*flags)
    assert table.code == 0 and "calls of the judge" in table.out and "the longer one preferred" in table.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "nowhere.py:judge"], "no such file"),
        (["--format", "scores", "--margin", 1], "`--margin`: does not apply to --format scores"),
        (["--rubric", PAIRS], "does not contain"),
    ],
)
def test_mistakes(mlx_dpo: Run, flags: list[object], more: list[Any], message: str) -> None:
    ran = mlx_dpo(*flags, *more)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err


def test_agreement_with_people_in_the_table(mlx_dpo: Run, tmp_path: Path) -> None:
    judge = tmp_path / "mine.py"
    judge.write_text("def longer(prompt, answer): return len(answer)")
    ran = mlx_dpo("label", PAIRS, "--judge", f"{judge}:longer", "--output", tmp_path / "out.jsonl")
    assert ran.code == 0 and "agreement with preferences of people (8)" in ran.out and "Cohen's kappa" in ran.out
