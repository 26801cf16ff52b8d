"""PPO as a command: its page and card, its child process being killed, and two ranks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlx_dpo.adapters.value_head import VALUE_HEAD_FILE
from tests.distributed.ranks import outputs, start_ranks
from tests.training.on_policy.runs import outcome, read_rollouts
from tests.training.on_policy.test_on_policy_processes import command, largest_difference

PPO = ("--loss", "ppo", "--num-ppo-epochs", "2", "--kl-target", "0.5", "--kl-horizon", "20", "--learning-rate", "1e-3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [item for item in command(folder, folder / "run", *PPO) if item != "--on-policy"]
    subprocess.run(arguments, capture_output=True, text=True, check=True)
    return folder / "run"


def test_the_command_its_page_and_its_card(whole: Path) -> None:
    """The loss alone makes it an on-policy run."""
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert read_rollouts(whole)[0]["prompt"] in page
    for chart in ("rlhf_reward", "sequence_kl", "kl_coef", "policy_loss", "value_loss", "clip_fraction"):
        assert f"data-chart={chart}" in page
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "scored by `judge.py:code_points`. Loss: `ppo`, KL coefficient 0.05. Reference: " in card


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 7, 11])
def test_a_killed_child_is_restarted_and_ends_the_same(tmp_path: Path, whole: Path, call: int) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "deadly").write_text(str(call))
    done = subprocess.run(command(folder, tmp_path / "run", *PPO), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "restart" in done.stderr.lower() + done.stdout.lower(), done.stderr
    assert outcome(tmp_path / "run") == outcome(whole)
    assert (tmp_path / "run" / VALUE_HEAD_FILE).read_bytes() == (whole / VALUE_HEAD_FILE).read_bytes()


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    outputs(start_ranks(tmp_path / "ranks", 2, command(tmp_path / "judge", run, "--no-supervise", *PPO)))
    keys = ("step", "prompt", "completions", "tokens", "scores")
    lines = [[[line[key] for key in keys] for line in read_rollouts(folder)] for folder in (run, whole)]
    assert lines[0] == lines[1] and largest_difference(run, whole) < 1e-5
