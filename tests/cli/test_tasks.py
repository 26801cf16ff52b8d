"""Benchmarks by mlx_lm.evaluate, with a stand-in for lm-evaluation-harness that has it answer two questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx_lm
import pytest

from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.benchmark_tasks import run_tasks
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.plain import logp

QUESTIONS = [("The sky is", " blue"), ("Two and two is", " four and no more")]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts the stand-in where lm_eval would be; what `simple_evaluate` was called with."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(model: Any, tasks: list[str], **how: Any) -> dict[str, Any]:
        calls.append({"tasks": tasks, **how})
        if "no_such_task" in tasks:
            raise KeyError("no_such_task")
        requests = [SimpleNamespace(args=question) for question in QUESTIONS]
        total = sum(logp for logp, _ in model.loglikelihood(requests))
        found = {
            "alias": tasks[0],
            "logp,none": total,
            "logp_stderr,none": 0.5,
            "acc,strict": 1.0,
            "acc_stderr,strict": "N/A",
        }
        return {"results": {tasks[0]: found}}

    room, api, base, registry = (ModuleType(f"lm_eval{name}") for name in ("", ".api", ".api.model", ".api.registry"))
    room.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    base.LM = type("LM", (), {"rank": 0, "world_size": 1})  # type: ignore[attr-defined]
    registry.register_model = lambda name: lambda kind: kind  # type: ignore[attr-defined]
    for module in (room, api, base, registry):
        module.__spec__ = SimpleNamespace(name=module.__name__)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "mlx_lm.evaluate", raising=False)
    return calls


def _plain(adapter: Path | None) -> float:
    model, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=None if adapter is None else str(adapter))
    total = 0.0
    for prompt, completion in QUESTIONS:
        start, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + completion)
        total += logp(model, start, whole[len(start) :])
    return total


def test_before_is_the_base_and_after_the_adapter(harness: list[dict[str, Any]]) -> None:
    found = run_tasks(str(CHECKPOINT), TRL / "adapter", ["sky"], limit=2, seed=3)
    before, after = _plain(None), _plain(TRL / "adapter")
    assert abs(before - after) > 0.01
    expected = {"before": before, "before_stderr": 0.5, "after": after, "after_stderr": 0.5}
    assert found["sky"]["logp"] == pytest.approx(expected, abs=1e-3)
    assert found["sky"].keys() == {"logp", "acc,strict"}
    assert found["sky"]["acc,strict"] == {"before": 1.0, "after": 1.0}
    assert len(harness) == 2 and harness[0] == harness[1]
    assert harness[0]["limit"] == 2 and harness[0]["random_seed"] == harness[0]["fewshot_random_seed"] == 3
    assert run_tasks(str(CHECKPOINT), None, ["sky"])["sky"]["logp"].keys() == {"before", "before_stderr"}


def test_a_task_that_there_is_not(harness: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="can't run no_such_task"):
        run_tasks(str(CHECKPOINT), None, ["no_such_task"])


def test_without_the_harness_it_is_said_before_anything_is_measured(
    mlx_dpo: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.evaluation.benchmark_tasks.find_spec", lambda name: None)
    ran = mlx_dpo("evaluate", "--model", CHECKPOINT, "--data", PAIRS, "--tasks", "arc_easy")
    assert ran.code == 2 and "lm-evaluation-harness" in ran.err and "pip install lm-eval" in ran.err


def test_tasks_on_the_command_line(mlx_dpo: Callable[..., CommandResult], harness: list[dict[str, Any]]) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", TRL / "adapter", "--tasks", "sky, sea")
    told = json.loads(mlx_dpo("evaluate", *flags, "--task-limit", 5, "--json").out)
    assert told["pairs"] == 8 and {"before", "after"} <= told["tasks"]["sky"]["logp"].keys()
    assert harness[0]["tasks"] == ["sky", "sea"] and harness[0]["limit"] == 5
    table = mlx_dpo("evaluate", *flags).out
    assert "before" in table and "± 0.5000" in table and "sky" in table
