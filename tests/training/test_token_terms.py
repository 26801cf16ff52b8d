"""Objectives that look at single tokens or whole distributions, against plain formulas over full logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import TrainConfig, UserError, evaluate, train
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.run_planner import estimate_run
from tests import plain
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.training.test_every_loss import config, gradient

BETA = 0.1


@dataclass
class Answer:
    """One answer's tokens under the policy and the reference: log-probs of the targets, and of the vocabulary."""

    logps: mx.array
    all_logps: mx.array
    reference: mx.array
    all_reference: mx.array

    def ratio(self, counts: Any = 1.0) -> mx.array:
        return ((self.logps - self.reference) * counts).sum()

    @property
    def kl(self) -> mx.array:
        """The sum over positions of KL(reference || policy)."""
        return (mx.exp(self.all_reference) * (self.all_reference - self.all_logps)).sum()

    @property
    def alignment(self) -> mx.array:
        collision = mx.log(mx.exp(2 * self.all_logps).sum(axis=-1))
        return mx.stop_gradient(mx.exp((self.logps - collision).mean()))


def log_sigmoid(z: mx.array) -> mx.array:
    return mx.log(mx.sigmoid(z))


def counts(answer: Answer, other: Answer, alpha: float) -> mx.array:
    at = mx.arange(len(answer.logps))
    return mx.where(at < min(len(answer.logps), len(other.logps)), 1.0, alpha)


PLAIN: dict[str, tuple[dict[str, Any], Callable[[Answer, Answer], mx.array]]] = {
    "tdpo": ({"loss": "tdpo"}, lambda w, r: -log_sigmoid(BETA * (w.ratio() - r.ratio() - (r.kl - w.kl)))),
    "tdpo2": (
        {"loss": "tdpo2", "tdpo_alpha": 0.7},
        lambda w, r: -log_sigmoid(BETA * (w.ratio() - r.ratio() - 0.7 * (r.kl - mx.stop_gradient(w.kl)))),
    ),
    "weighting": (
        {"loss": "sigmoid", "use_weighting": True},
        lambda w, r: -w.alignment * r.alignment * log_sigmoid(BETA * (w.ratio() - r.ratio())),
    ),
    "length-desensitised": (
        {"loss": "sigmoid", "ld_alpha": 0.3},
        lambda w, r: -log_sigmoid(BETA * (w.ratio(counts(w, r, 0.3)) - r.ratio(counts(r, w, 0.3)))),
    ),
    "no tail": (
        {"loss": "apo_down", "ld_alpha": 0.0},
        lambda w, r: (
            mx.sigmoid(BETA * w.ratio(counts(w, r, 0.0)))
            + mx.sigmoid(-BETA * (w.ratio(counts(w, r, 0.0)) - r.ratio(counts(r, w, 0.0))))
        ),
    ),
    "all at once": (
        {"loss": "tdpo=0.5,sigmoid=1", "use_weighting": True, "ld_alpha": 0.5},
        lambda w, r: (
            -w.alignment
            * r.alignment
            * (
                0.5 * log_sigmoid(BETA * (w.ratio(counts(w, r, 0.5)) - r.ratio(counts(r, w, 0.5)) - (r.kl - w.kl)))
                + log_sigmoid(BETA * (w.ratio(counts(w, r, 0.5)) - r.ratio(counts(r, w, 0.5))))
            )
        ),
    ),
}


def log_softmax(model: nn.Module, prompt: list[int], completion: list[int]) -> mx.array:
    logits = model(mx.array([prompt + completion]))[0, len(prompt) - 1 : -1].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def plainly(of_pair: Callable[[Answer, Answer], mx.array]) -> tuple[float, np.ndarray]:
    """The mean loss of the eight pairs, and its gradient."""
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    policy, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    policy.freeze()
    policy.apply_to_modules(lambda _, m: m.unfreeze(keys=["lora_a", "lora_b"], recurse=False))
    encoded = [
        [plain.completion_ids(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        for row in rows_of(PAIRS)
    ]

    def answer(prompt: list[int], completion: list[int]) -> Answer:
        ours, theirs = (log_softmax(model, prompt, completion) for model in (policy, base))
        target = mx.array(completion)[:, None]
        at = (mx.take_along_axis(logps, target, axis=-1)[:, 0] for logps in (ours, theirs))
        own, reference = at
        return Answer(own, ours, reference, theirs)

    def loss() -> mx.array:
        return mx.stack([of_pair(*(answer(*side) for side in pair)) for pair in encoded]).mean()

    value, found = nn.value_and_grad(policy, loss)()
    tensors = dict(tree_flatten(found))
    names = mx.load(str(TRL / "adapter" / "adapters.safetensors"))
    return value.item(), np.concatenate([np.array(tensors[name]).astype(np.float64).reshape(-1) for name in names])


@pytest.mark.parametrize("memory_limit", ["4GB", "1MB"], ids=["whole batch", "pair by pair"])
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_gradient(tmp_path: Path, name: str, memory_limit: str) -> None:
    knobs, of_pair = PLAIN[name]
    expected, expected_gradient = plainly(of_pair)
    run = tmp_path / "run"
    # A rate of 100, since a weighted gradient is small beside what float32 can tell of the weights.
    train(config(run, memory_limit=memory_limit, learning_rate=100.0, **knobs), listener=MetricsLog())
    assert read_metrics(run)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    ours = gradient(run) / 100
    assert np.linalg.norm(ours - expected_gradient) <= 2e-5 * np.linalg.norm(expected_gradient)
    measured = evaluate(
        TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), batch_size=3, **knobs), adapter_path=TRL / "adapter"
    )
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_margin_column_is_asked_for(tmp_path: Path) -> None:
    rows = rows_of(PAIRS)
    file = write_rows(tmp_path / "pairs.jsonl", [{**row, "margin": 0.1 * i} for i, row in enumerate(rows)])
    notes: list[str] = []

    class Notes(MetricsLog):
        def on_note(self, text: str) -> None:
            notes.append(text)

    run = tmp_path / "run"
    train(config(run, data=str(file)), listener=Notes())
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    policy, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    margins = [plain.metrics(policy, base, tokenizer, [row], BETA)["rewards/margins"] for row in rows]
    expected = np.mean([np.logaddexp(0, 0.1 * i - margin) for i, margin in enumerate(margins)])
    assert read_metrics(run)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert any("`margin` column is used" in note for note in notes)
    train(config(tmp_path / "other", data=str(file), loss="nca_pair"), listener=Notes())
    assert any("`margin` column is ignored by the loss nca_pair" in note for note in notes)


def test_an_offset_of_scores(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(run, loss="odpo", odpo_alpha=0.5), listener=MetricsLog())
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    policy, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    losses = []
    for row in rows_of(TRL / "scored.jsonl"):
        margin = plain.metrics(policy, base, tokenizer, [row], BETA)["rewards/margins"]
        losses.append(np.logaddexp(0, 0.5 * np.log(row["score_chosen"] - row["score_rejected"]) - margin))
    assert read_metrics(run)[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(UserError, match=r"pairs.jsonl:1: the pair has no scores"):
        train(config(tmp_path / "other", loss="odpo", data=str(PAIRS)))


@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"loss": "tdpo", "reference": "none"}, "reference"),
        ({"loss": "aot", "use_weighting": True}, "use_weighting"),
        ({"loss": "kto", "batch_size": 1}, "batch_size"),
        ({"reference": "none", "reference_sync_steps": 2}, "reference_sync_steps"),
        ({"reference_mixup": 0.5}, "reference_mixup"),
        ({"fine_tune_type": "full", "init_adapter": None, "reference": "initial", "loss": "kto"}, "fine_tune_type"),
        ({"loss": "tdpo2", "fine_tune_type": "full", "init_adapter": None}, "fine_tune_type"),
        ({"loss": "kto", "reference": str(CHECKPOINT)}, "reference"),
        ({"loss": "tdpo", "reference": str(CHECKPOINT)}, "reference"),
        (
            {"fine_tune_type": "full", "init_adapter": None, "reference": "initial", "reference_sync_steps": 2},
            "reference_sync_steps",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, knobs: dict[str, Any], field: str) -> None:
    for run in (train, estimate_run):
        with pytest.raises(UserError) as raised:
            run(config(tmp_path / "run", **knobs, model="no-such-model"))
        assert raised.value.field == field  # and not the model, which is loaded later
    assert not (tmp_path / "run").exists()
