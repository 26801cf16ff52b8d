"""On-policy runs: the same bytes after any interruption, what is recorded, ties, replay, and batches sampled ahead."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import Interrupted, Listener, UserError, train
from mlx_dpo.forward.forward_trace import ForwardTrace
from mlx_dpo.judges.judge import Answer
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.events import Metrics
from mlx_dpo.training.on_policy import rollout_sampler
from mlx_dpo.training.on_policy.rollout_source import MAX_DRAWS
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.run_planner import RunEstimate, estimate_run
from mlx_dpo.utils.stop_flag import StopRequested
from tests.conftest import CHECKPOINT, PAIRS, rows_of, write_rows
from tests.marks import mostly_slow
from tests.training.on_policy.runs import (
    PROMPTS,
    CodePointJudge,
    on_policy_config,
    outcome,
    read_rollouts,
    score,
    train_on_policy,
)
from tests.training.test_plug_points import Killed

KINDS: dict[str, dict[str, Any]] = {
    "best of three": {"num_completions": 3},
    "xpo": {"loss": "xpo"},
    "nash_md": {"loss": "nash_md"},
    "without a reference": {"loss": "simpo", "reference": "initial"},
    "dropout, best of three by a sum": {
        "loss": "sigmoid=1,sft=0.1",
        "num_completions": 3,
        "dropout": 0.1,
        "init_adapter": None,
    },
    "full": {"loss": "cpo", "reference": "initial", "fine_tune_type": "full", "init_adapter": None},
    "two batches ahead": {"rollout_batches": 2},
    "a moving reference": {"reference_sync_steps": 2, "rollout_batches": 3},
}


class KillAt(Listener):
    """Ends the run in the middle of a step, after its rollouts are written."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_rollouts(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        if step == self.at:
            raise Killed


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 3))
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, kind: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_on_policy(whole, **KINDS[kind])
    with pytest.raises(Killed):
        train_on_policy(cut, KillAt(4), **KINDS[kind])
    assert [line["step"] for line in read_rollouts(cut)][-1] == 4
    (cut / "rollouts.jsonl").open("ab").write(b'{"step": 5, "posi')  # a write that was cut off
    train_on_policy(cut, **KINDS[kind])
    assert outcome(cut) == outcome(whole)
    steps = [line["step"] for line in read_rollouts(whole)]
    assert steps == sorted(steps) and set(steps) == {1, 2, 3, 4, 5}
    assert [line["position"] for line in read_rollouts(whole)] == list(range(len(steps)))


def stop_at(call: int, function: Any) -> Any:
    """The function, which requests a stop when it is called for the nth time."""
    calls = itertools.count(1)

    def stop_or_call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise StopRequested
        return function(*args, **kwargs)

    return stop_or_call


@pytest.mark.parametrize(
    "place", [(rollout_sampler, "sample_completions"), (ForwardTrace, "gradient")], ids=["sampling", "training"]
)
def test_a_run_stopped_within_a_step_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_on_policy(whole)
    with monkeypatch.context() as patch:
        patch.setattr(*place, stop_at(4, getattr(*place)))
        with pytest.raises(Interrupted) as stopped:
            train_on_policy(cut)
    assert stopped.value.step == 3 and (RunFolder(cut).require_latest_checkpoint()).name == "0000003"
    train_on_policy(cut)
    assert outcome(cut) == outcome(whole)


def test_a_judge_that_fails_costs_no_step(tmp_path: Path) -> None:
    class Failing(CodePointJudge):
        def scores(self, answers: Sequence[Answer]) -> list[float | None]:
            if self.calls == 3:
                raise UserError("the judge is out of order", field="judge")
            return super().scores(answers)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_on_policy(whole)
    with pytest.raises(UserError, match="out of order"):
        train_on_policy(cut, judge=Failing())
    assert RunFolder(cut).require_latest_checkpoint().name == "0000003"
    train_on_policy(cut)
    assert outcome(cut) == outcome(whole)


def test_what_is_recorded(tmp_path: Path) -> None:
    class Notes(Listener):
        def __init__(self) -> None:
            self.reports = list[Metrics]()

        def on_metrics(self, metrics: Metrics) -> None:
            self.reports.append(metrics)

    notes = Notes()
    train_on_policy(tmp_path, notes, num_completions=3, iters=2)
    lines = read_rollouts(tmp_path)
    assert len(lines) == 6 and len({line["prompt"] for line in lines}) == 6
    for line in lines:
        assert line["scores"] == [score(text) for text in line["completions"]]
        best, worst = max(line["scores"]), min(line["scores"])
        pair = line["chosen"], line["rejected"]
        assert pair == (None, None) if best == worst else [line["scores"][i] for i in pair] == [best, worst]
        assert all(0 < count <= 12 for count in line["tokens"]) and line["win_rates"] is None
        assert all(0 < entropy < np.log(300) + 3 for entropy in line["entropies"]) and None not in line["kls"]
    (report,) = notes.reports
    scores = [value for line in lines for value in line["scores"]]
    assert report["rollouts/reward"] == pytest.approx(np.mean(scores))
    assert report["rollouts/length"] == pytest.approx(np.mean([count for line in lines for count in line["tokens"]]))
    assert report["rollouts/ties"] == pytest.approx(np.mean([line["chosen"] is None for line in lines]))
    assert report["rollouts/kl"] == pytest.approx(np.mean([kl for line in lines for kl in line["kls"]]), rel=1e-4)
    assert report["step"] == 2 and "loss" in report


def test_prompts_are_drawn_again_and_then_the_step_is_skipped(tmp_path: Path) -> None:
    """The judge has no preference in the draws of the first step, nor in the first draw of the second."""
    train_on_policy(tmp_path, MetricsLog(), judge=CodePointJudge(ties=MAX_DRAWS + 1), iters=3, steps_per_report=1)
    steps = [line["step"] for line in read_rollouts(tmp_path)]
    assert [steps.count(step) for step in (1, 2, 3)] == [3 * MAX_DRAWS, 6, 3]
    reports = read_metrics(tmp_path)
    assert "loss" not in reports[0] and reports[0]["rollouts/ties"] == reports[0]["rollouts/empty_steps"] == 1
    assert "loss" in reports[1] and reports[1]["rollouts/ties"] >= 0.5 and reports[1]["rollouts/empty_steps"] == 0


class LoadingJudge(CodePointJudge):
    """Counts how often it would load a model."""

    num_loads = 0

    @contextmanager
    def session(self) -> Iterator[None]:
        self.num_loads += 1
        yield


def test_a_judge_that_is_a_model_is_loaded_once(tmp_path: Path) -> None:
    judge = LoadingJudge()
    train_on_policy(tmp_path / "run", judge=judge)
    assert judge.num_loads == 1 and judge.calls > 1


def test_other_prompts_or_another_judge_are_named_when_a_run_resumes(tmp_path: Path) -> None:
    class Other(CodePointJudge):
        name = identity = "another judge"

    run, rows = tmp_path / "run", write_rows(tmp_path / "pairs.jsonl", rows_of(PAIRS))
    settings: dict[str, Any] = {"replay": 0.25, "batch_size": 4, "data": str(rows), "valid_pairs": 0}
    with pytest.raises(Killed):
        train_on_policy(run, KillAt(3), **settings)
    with pytest.raises(UserError, match="since the checkpoint: the prompts, or the judge changed"):
        train_on_policy(run, judge=Other(), **settings)
    write_rows(rows, rows_of(PAIRS)[1:])
    with pytest.raises(UserError, match="since the checkpoint: the rows to train on changed"):
        train_on_policy(run, **settings)


def test_pairs_of_a_file_are_replayed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings: dict[str, Any] = {"replay": 0.25, "batch_size": 4, "data": str(PAIRS), "valid_pairs": 0}
    train_on_policy(whole, MetricsLog(), **settings)
    assert len(read_rollouts(whole)) == 3 * 5
    with pytest.raises(Killed):
        train_on_policy(cut, KillAt(3), **settings)
    train_on_policy(cut, **settings)
    assert outcome(cut) == outcome(whole)
    alone = tmp_path / "alone"
    train_on_policy(alone)
    assert outcome(alone)[0] != outcome(whole)[0]


def test_the_policy_samples_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very arrays that the optimizer updates, and no copy of the frozen ones."""
    weight_ids = list[tuple[int, ...]]()
    sample = rollout_sampler.sample_completions

    def spy(model: Any, *args: Any, **kwargs: Any) -> Any:
        weight_ids.append(tuple(id(array) for _, array in tree_flatten(model.parameters())))
        return sample(model, *args, **kwargs)

    monkeypatch.setattr(rollout_sampler, "sample_completions", spy)
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    frozen = {id(array) for name, array in tree_flatten(model.parameters()) if "norm" in name or "embed" in name}

    class Weights(Listener):
        def on_step(self, step: int, metrics: Metrics) -> None:
            weights.append(tuple(id(array) for _, array in tree_flatten(model.parameters())))

    weights = list[tuple[int, ...]]()

    config = on_policy_config(tmp_path, iters=3)
    train(config, model=model, tokenizer=tokenizer, prompts=PROMPTS, judge=CodePointJudge(), listener=Weights())
    assert (
        len(weight_ids) == 3
        and weight_ids[1] == weights[0]
        and weight_ids[2] == weights[1]
        and weight_ids[1] != weight_ids[0]
    )
    assert frozen <= set(weight_ids[2])


def test_held_out_pairs_are_measured(tmp_path: Path) -> None:
    result = train_on_policy(tmp_path, valid_data=str(PAIRS), iters=1)
    assert len(rows_of(PAIRS)) == 8 and {"rewards/accuracies", "loss"} <= result.after.keys()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"on_policy": False}, "max_tokens"),
        ({"on_policy": False, "max_tokens": 256, "loss": "xpo"}, "loss"),
        ({"max_tokens": 2048}, "max_tokens"),
        ({"data": str(PAIRS)}, "data"),
        ({"rows": rows_of(PAIRS)}, "data"),
        ({"replay": 0.9, "data": str(PAIRS), "batch_size": 1}, "replay"),
        ({"replay": 0.5, "data": str(PAIRS), "loss": "kto"}, "replay"),
        ({"reference": str(CHECKPOINT)}, "reference"),
        ({"fine_tune_type": "full", "init_adapter": None, "reference": "initial"}, "fine_tune_type"),
        ({"loss": "xpo", "num_completions": 3}, "num_completions"),
        ({"loss": "xpo", "reference": "none"}, "reference"),
        ({"loss": "nash_md=1,sft=0.1"}, "loss"),
        ({"nash_md_mixture_coef": 0.3}, "nash_md_mixture_coef"),
        ({"loss": "reward", "reference": "initial"}, "loss"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as raised:
        train_on_policy(tmp_path / "run", **settings)
    assert raised.value.field == field and not (tmp_path / "run").exists()


def test_a_plan_counts_the_memory_of_sampling(tmp_path: Path) -> None:
    """Nothing is sampled or judged for it; completions are taken to be as long as they may be."""

    def estimate(**settings: Any) -> RunEstimate:
        config = on_policy_config(tmp_path, **settings)
        return estimate_run(config, prompts=PROMPTS, judge=CodePointJudge())

    plan, more = estimate(max_tokens=300), estimate(max_tokens=300, num_completions=8)
    assert plan.pairs == 10 and plan.completion_tokens == (300, 300) and plan.steps == 5
    # float32 keys and values of 2 layers with 2 heads of 16: 512 bytes a token
    assert more.memory["sampling"] > 8 * 3 * 300 * 512 and more.memory["sampling"] > 3 * plan.memory["sampling"]
    assert more.memory["peak"] >= more.memory["held"] + more.memory["sampling"]
    assert not (tmp_path / "rollouts.jsonl").exists()
