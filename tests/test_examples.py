"""The examples run as they stand."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo import train
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import read_yaml
from mlx_dpo.judges.judge import Answer, Comparison
from mlx_dpo.judges.judge_registry import load_judge
from mlx_dpo.judges.rubric_prompt import judge_messages, read_rubric
from mlx_dpo.reporting.metrics_log import read_metrics
from tests.conftest import CHECKPOINT, PAIRS

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_library(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / "library.py", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "step 15" in ran.stdout and "held-out reward accuracy" in ran.stdout


@pytest.mark.slow  # tests/demo/test_reward_model.py trains it to the end
def test_reward_model(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / "reward_model.py", tmp_path, "2"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "held-out accuracy" in ran.stdout and "of the best of eight" in ran.stdout


def test_a_loss_of_your_own_is_as_the_readme_has_it(tmp_path: Path) -> None:
    file = EXAMPLES / "focal.py"
    assert f"```python\n{file.read_text()}```" in (EXAMPLES.parent / "docs" / "losses.md").read_text(encoding="utf-8")
    knobs = {"data": str(PAIRS), "valid_data": str(PAIRS), "adapter_path": str(tmp_path), "learning_rate": 1e-3}
    result = train(TrainConfig(model=str(CHECKPOINT), loss=f"{file}:focal", beta=0.5, iters=5, **knobs))
    assert result.before["loss"] == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert result.after["loss"] < 0.1 and result.after["rewards/accuracies"] > 0.7


@pytest.mark.slow
def test_the_papers_pipeline(tmp_path: Path) -> None:
    """SFT, then DPO from it: the second run starts where the first ended, and that start is its reference."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = ("--iters", "2", "--valid-data", PAIRS, "--learning-rate", "1e-3")
    command = [EXAMPLES / "pipeline.sh", CHECKPOINT, PAIRS, tmp_path, *flags]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert ran.returncode == 0, ran.stderr
    sft, dpo = (read_metrics(tmp_path / stage) for stage in ("sft", "dpo"))
    assert sft[0]["eval_loss"] > sft[-1]["eval_loss"]
    assert dpo[0]["eval_rewards/margins"] == 0
    assert dpo[0]["eval_logps/chosen"] == pytest.approx(sft[-1]["eval_logps/chosen"], rel=1e-6)
    assert dpo[0]["eval_logps/chosen"] > sft[0]["eval_logps/chosen"]


def test_judges_by_rule() -> None:
    def scores(name: str, *answers: str) -> list[float | None]:
        return load_judge(f"{EXAMPLES / 'judges.py'}:{name}").scores([Answer("Q", text) for text in answers])

    assert scores("polite", "No.", "Of course! Please sit.", "please please thank you, happy to") == [0, 2, 3]
    assert scores("brief", "word " * 10, "word " * 60, "word " * 64, "word") == [0, 0, -4, -9]
    assert scores("valid_json", '{"a": 1}', '```json\n{"a": 1}\n```', "[1]", "no") == [1, 1, 0, 0]
    shorter = load_judge(f"{EXAMPLES / 'judges.py'}:shorter")
    assert shorter.verdicts([Comparison("Q", "a", "bb"), Comparison("Q", "a", "b")]) == [1, 0.5]


def test_the_rubric() -> None:
    (message,) = judge_messages(Comparison("Where is it?", "Here.", "There."), read_rubric(EXAMPLES / "rubric.txt"))
    assert "[Answer A]\nHere.\n" in message["content"] and "[Answer B]\nThere.\n" in message["content"]


def test_config() -> None:
    assert TrainConfig.from_mapping(read_yaml(EXAMPLES / "run.yaml")).epochs == 2


@pytest.mark.slow
def test_callbacks(tmp_path: Path) -> None:
    """One writes a table, another ends the run."""
    ran = subprocess.run([sys.executable, EXAMPLES / "callbacks.py", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "held_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracies = [float(row["eval_rewards/accuracies"]) for row in rows]
    assert len(rows) > 1 and accuracies[-1] >= 0.9 > max(accuracies[:-1])
    assert f"stopped after step {rows[-1]['step']}" in ran.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "adapter") if "eval_loss" in line][-1] == int(
        rows[-1]["step"]
    )
