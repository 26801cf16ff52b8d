"""`mlx-dpo rounds` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, write_rows


def test_a_round_and_its_results(mlx_dpo: Callable[..., CommandResult], tmp_path: Path) -> None:
    judge = tmp_path / "mine.py"
    judge.write_text("def longer(prompt, first, second):\n    return float(len(first) > len(second))\n")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}"} for i in range(20)])
    flags = ["rounds", "--model", CHECKPOINT, "--prompts", prompts, "--judge", f"{judge}:longer", "--rounds", 1]
    flags += ["--n", 2, "--max-tokens", 6, "--iters", 2, "--batch-size", 4, "--output-dir", tmp_path / "out"]
    ran = mlx_dpo(*flags, "--no-supervise", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["best_round"] == 1 and result["stopped"] is None and len(result["rounds"]) == 1
    assert result["rounds"][0]["against_start"]["prompts"] == 2 and result["rounds"][0]["mean_score"] is None
    assert Path(result["adapter"], "adapters.safetensors").exists() and Path(result["adapter"], "report.html").exists()
    again = mlx_dpo(*flags)
    assert again.code == 0 and "win rate against the start" in again.out and "Round 1 is best" in again.out
    refused = mlx_dpo(*flags, "--beta", 0.7)
    assert refused.code == 2 and "another `beta`" in refused.err and "Traceback" not in refused.err
    mistaken = mlx_dpo(*flags, "--n", 1)
    assert mistaken.code == 2
