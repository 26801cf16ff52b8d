"""The demo: from half of the answers in the preferred manner to nearly all, on unseen questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_dpo import Listener
from mlx_dpo.demo import PAIRS, load_pairs
from mlx_dpo.demo.demo_run import demo_config, run_demo


@pytest.mark.slow  # `make demo` runs all of it
def test_the_demo_begins_undecided_and_moves(tmp_path: Path) -> None:
    """Ten of its steps, measured on 32 pairs."""
    config = demo_config(str(tmp_path / "run")).replace(data=str(PAIRS / "train.jsonl"), valid_pairs=32, iters=10)
    done = run_demo(config, Listener())
    assert done.train_result.before["rewards/margins"] == 0 and done.train_result.after["rewards/accuracies"] > 0.9
    assert 0.4 <= done.before.polite <= 0.6 and done.before.fluent >= 0.9 and done.after.fluent >= 0.9
    assert len(done.examples) == len(load_pairs("valid"))


@pytest.mark.slow
def test_the_demo_reaches_what_it_promises(tmp_path: Path) -> None:
    done = run_demo(demo_config(str(tmp_path / "run")), Listener())
    before, after = done.train_result.before, done.train_result.after
    assert 0.4 <= before["logps/accuracies"] <= 0.6 and after["logps/accuracies"] >= 0.95
    assert after["rewards/accuracies"] >= 0.95
    assert 0.4 <= done.before.polite <= 0.6 and done.after.polite >= 0.9
    assert done.before.fluent >= 0.9 and done.after.fluent >= 0.9
