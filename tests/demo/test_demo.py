"""What the demo promises: from half of the answers in the preferred manner to nearly all, on unseen questions."""

from __future__ import annotations

from pathlib import Path

from mlx_dpo import Listener
from mlx_dpo.demo.run import demo_config, run_demo


def test_the_demo_reaches_what_it_promises(tmp_path: Path) -> None:
    done = run_demo(demo_config(str(tmp_path / "run")), Listener())
    before, after = done.trained.before, done.trained.after
    assert 0.4 <= before["logps/accuracies"] <= 0.6 and after["logps/accuracies"] >= 0.95
    assert after["rewards/accuracies"] >= 0.95
    assert 0.4 <= done.before.polite <= 0.6 and done.after.polite >= 0.9
    assert done.before.fluent >= 0.9 and done.after.fluent >= 0.9
