"""`mlx-dpo rounds`, ended at any moment: the same command ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINT, PAIRS, write_rows
from tests.forked import start_command

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FILES = ["rounds.json", "rounds.html", "settings.json", "prompts.jsonl", "eval-prompts.jsonl", "start/answers.jsonl"]
OF_ROUND = ["samples.jsonl", "pairs.jsonl", "answers.jsonl", "evaluation.json", "adapter/adapters.safetensors"]
FILES += [f"round-{number}/{name}" for number in (1, 2) for name in OF_ROUND]
JUDGE = "def score(prompt, answer):\n    return answer.count('e') + len(answer) / 100\n"


def command(folder: Path) -> list[object]:
    folder.mkdir(exist_ok=True)
    judge = folder.parent / "mine.py"
    judge.write_text(JUDGE)
    rows = [{"prompt": f"Question {i}?"} for i in range(8)]
    flags = ["rounds", "--model", CHECKPOINT, "--prompts", write_rows(folder / "prompts.jsonl", rows)]
    flags += ["--eval-prompts", folder / "prompts.jsonl", "--judge", f"{judge}:score", "--output-dir", folder / "out"]
    flags += ["--rounds", 2, "--n", 4, "--max-tokens", 8, "--iters", 3, "--batch-size", 4, "--learning-rate", "1e-2"]
    return [*flags, "--save-every", 1, "--no-early-stop", "--no-supervise", "--quiet", "--valid-data", PAIRS]


def contents(folder: Path) -> dict[str, bytes]:
    files = {name: (folder / "out" / name).read_bytes() for name in FILES}
    files["rounds.html"] = files["rounds.html"].replace(str(folder.parent).encode(), b"")  # the judge's name has it
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """Rounds that nobody disturbed, and the seconds that they take."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    process = start_command(command(folder / "run"), folder / "output")
    process.join(300)
    assert process.exitcode == 0, (folder / "output").read_text()
    return contents(folder / "run"), time.monotonic() - began


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 1), *(pytest.param(seed, 10, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_ended_at_any_moment_they_end_the_same(
    tmp_path: Path, whole: tuple[dict[str, bytes], float], seed: int, kills: int
) -> None:
    expected, seconds = whole
    rng, output = random.Random(seed), tmp_path / "output"
    for number in range(kills + 1):
        process = start_command(command(tmp_path / "run"), output)
        if number < kills:
            process.join(rng.random() * seconds * 2 / kills)
            with suppress(ProcessLookupError):  # it was over before
                os.kill(process.pid or 0, rng.choice(SIGNALS))
        process.join(300)
        assert "Traceback" not in output.read_text(), output.read_text()
    assert process.exitcode == 0, output.read_text()
    found = contents(tmp_path / "run")
    assert [name for name in FILES if found[name] != expected[name]] == []
