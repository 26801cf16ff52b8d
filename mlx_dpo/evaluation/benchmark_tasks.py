"""Runs benchmark tasks of lm-evaluation-harness, through mlx_lm.evaluate, with and without an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import find_model_folder

TaskScores = dict[str, dict[str, float]]  # task -> metric, with the harness's filter as in "acc,none" -> value


def require_lm_eval_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("lm_eval") is None:
        hint = "pip install lm-eval"
        raise UserError("tasks need lm-evaluation-harness, which is not installed", field="tasks", hint=hint)


def run_tasks(
    model: str, adapter_path: str | Path | None, tasks: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Run tasks with the model, before and after its adapter is applied.

    Args:
        model: folder or Hub id.
        adapter_path: adapter folder; without one only `before` is measured.
        tasks: names of tasks.
        limit: how many examples of each task to use; default: all.
        seed: of few-shot examples and of sampling.

    Returns:
        By task and metric, `before` and `after`, each with its standard error, as `before_stderr`, if there is one.

    Raises:
        UserError: lm-evaluation-harness is not installed or can't run a task, or a folder can't be loaded.
    """
    require_lm_eval_harness()
    from mlx_lm.evaluate import MLXLM

    harness = MLXLM(str(find_model_folder(model)))
    if adapter_path is None:
        return _side_by_side({"before": _scores(harness, tasks, limit, seed)})
    _, base_tensors = load_adapter(harness._model, adapter_path)
    harness._model.eval()
    with swap_adapter(harness._model, base_tensors):
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
    except (KeyError, ValueError, OSError) as error:  # an unknown task, or its data can't be downloaded
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"lm-evaluation-harness can't run {', '.join(tasks)}: {reason}", field="tasks") from error
    return {
        task: {name: float(value) for name, value in scores.items() if "," in name and isinstance(value, (int, float))}
        for task, scores in results["results"].items()
    }


def _side_by_side(runs: dict[str, TaskScores]) -> dict[str, Any]:
    """Group scores by task and metric. The harness names a metric `acc,none` and its error `acc_stderr,none`."""
    table: dict[str, Any] = {}
    for run, tasks in runs.items():
        for task, scores in tasks.items():
            for name, value in scores.items():
                metric, _, score_filter = name.partition(",")
                plain, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
                label = plain if score_filter == "none" else f"{plain},{score_filter}"
                table.setdefault(task, {}).setdefault(label, {})[f"{run}_stderr" if is_error else run] = value
    return table
