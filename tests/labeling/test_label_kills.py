"""`mlx-dpo label`, killed at any moment: the same command ends with the same bytes, and asks next to nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.forked import start_command

JUDGE = """
import time
def judge(prompt, {arguments}):
    with open({log!r}, "a") as file:
        file.write("asked\\n")
    time.sleep(0.001)
    return {result}
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = {
    "scalar": ("answer", "len(answer) % 7 + answer.count('b') / 3"),
    "pairwise": ("first, second", "0.5 if len(first) == len(second) else float(len(first) > len(second))"),
}


def num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def label_until_done(folder: Path, kind: str, rng: random.Random | None, kills: int = 0) -> tuple[int, int]:
    """How many processes it took, and how many times the judge was called."""
    folder.mkdir()
    arguments, result = KINDS[kind]
    log, judge = folder / "log", folder / "mine.py"
    judge.write_text(JUDGE.format(arguments=arguments, log=str(log), result=result))
    texts = [["ab"[k % 2] * (1 + (3 * i + k) % 9) for k in range(4)] for i in range(40)]
    rows = [{"prompt": f"Q{i}", "completions": texts[i]} for i in range(40)]
    command = ["label", write_rows(folder / "rows.jsonl", rows), "--judge", f"{judge}:judge"]
    command += ["--output", folder / "pairs.jsonl", "--pairs", "all"]
    for number in range(1, 100):
        process, before = start_command(command, folder / "output"), num_lines(log)
        if rng is not None and number <= kills:
            more = rng.randrange(40)
            while process.is_alive() and num_lines(log) < before + more:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.005)
            with suppress(ProcessLookupError):  # it was over before
                os.kill(process.pid or 0, rng.choice(SIGNALS))
        process.join(60)
        assert "Traceback" not in (folder / "output").read_text()
        if process.exitcode == 0:
            return number, num_lines(log)
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("pairwise", 0),
        pytest.param("scalar", 0, marks=pytest.mark.slow),
        *(pytest.param(kind, seed, marks=pytest.mark.slow) for kind in KINDS for seed in range(1, 6)),
    ],
)
def test_killed_and_resumed_is_the_same_to_the_byte(tmp_path: Path, kind: str, seed: int) -> None:
    _, calls = label_until_done(tmp_path / "whole", kind, None)
    processes, calls_with_kills = label_until_done(tmp_path / "killed", kind, random.Random(seed), 20 if seed else 4)
    assert processes > 1 and calls <= calls_with_kills <= calls + processes
    for name in ("pairs.jsonl", "pairs.jsonl.label.json"):
        whole, killed = ((tmp_path / run / name).read_text() for run in ("whole", "killed"))
        if name == "pairs.jsonl":
            assert whole == killed and whole
        else:
            assert whole.split('"data"')[1] == killed.split('"data"')[1]  # but for the judge, which has another log
