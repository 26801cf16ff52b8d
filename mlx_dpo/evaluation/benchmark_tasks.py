"""Benchmark tasks of lm-evaluation-harness, run by mlx_lm.evaluate, before and after: what tuning cost."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import find_model_folder

TaskScores = dict[str, dict[str, float]]  # by task and metric


def require_lm_eval() -> None:
    """Raise `UserError` where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        hint = "pip install lm-eval"
        raise UserError("tasks need lm-evaluation-harness, which is not installed", field="tasks", hint=hint)


def run_tasks(
    model: str, adapter_path: str | Path | None, tasks: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """By task and metric `before` and `after`, each with its standard error where the harness gives one.

    Without an adapter there is only `before`. With `limit`, only so many examples of each task. Raises `UserError`.
    """
    require_lm_eval()
    from mlx_lm.evaluate import MLXLM

    harness = MLXLM(str(find_model_folder(model)))
    if adapter_path is None:
        return _side_by_side({"before": _scores(harness, tasks, limit, seed)})
    _, base = load_adapter(harness._model, adapter_path)
    harness._model.eval()
    with swap_adapter(harness._model, base):
        before = _scores(harness, tasks, limit, seed)
    return _side_by_side({"before": before, "after": _scores(harness, tasks, limit, seed)})


def _scores(harness: Any, tasks: Sequence[str], limit: int | None, seed: int) -> TaskScores:
    import lm_eval

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        results = lm_eval.simple_evaluate(
            model=harness,
            tasks=list(tasks),
            limit=limit,
            apply_chat_template=harness.use_chat_template,
            **dict.fromkeys(seeds, seed),
        )
    except (KeyError, ValueError, OSError) as error:  # no such task, or its data can't be had
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"lm-evaluation-harness can't run {', '.join(tasks)}: {reason}", field="tasks") from error
    return {
        task: {name: float(value) for name, value in found.items() if "," in name and isinstance(value, (int, float))}
        for task, found in results["results"].items()
    }


def _side_by_side(sides: dict[str, TaskScores]) -> dict[str, Any]:
    """The harness calls a metric `acc,none` and its error `acc_stderr,none`."""
    told: dict[str, Any] = {}
    for when, scores in sides.items():
        for task, found in scores.items():
            for name, value in found.items():
                metric, _, rest = name.partition(",")
                of_it = told.setdefault(task, {}).setdefault(metric.removesuffix("_stderr") + f",{rest}", {})
                of_it[f"{when}_stderr" if metric.endswith("_stderr") else when] = value
    return {task: {m.removesuffix(",none"): v for m, v in of_it.items()} for task, of_it in told.items()}
