"""Training on single completions, and pairs as two of them: against float64, and through the loop's own corners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo import Interrupted, TrainConfig, UserError, evaluate, train
from mlx_dpo.data.shuffled_epochs import ShuffledEpochs
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.checkpoint import read_training_state
from mlx_dpo.training.listener import Listener
from tests import plain
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.marks import mostly_slow
from tests.training.test_every_loss import config, gradient
from tests.training.test_run import StopAfter

BETA = 0.1
UNPAIRED = ("kto", "bco", "apo_zero_unpaired", "sft", "kto=0.7,sft=0.3")


def split(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All chosen answers, then all rejected ones, as TRL unpairs a set."""
    sides = (("chosen", True), ("rejected", False))
    return [{"prompt": r["prompt"], "completion": r[side], "label": label} for side, label in sides for r in pairs]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "labelled.jsonl", split(rows_of(PAIRS)))


def logratios(rows: list[dict[str, Any]]) -> np.ndarray:
    """log pi - log pi_ref of each row's completion, nats, the plain way."""
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    policy, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    ids = [plain.completion_ids(tokenizer, row["prompt"], row["completion"]) for row in rows]
    return np.array([plain.logp(policy, *one) - plain.logp(base, *one) for one in ids])


def nls(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -x)


def plain_kl(rows: list[dict[str, Any]]) -> float:
    """The mean log-ratio of every prompt with the completion of the row before it."""
    shifted = [{**row, "completion": rows[i - 1]["completion"]} for i, row in enumerate(rows)]
    return max(0.0, float(logratios(shifted).mean()))


def test_kto_is_its_formula(tmp_path: Path, labelled: Path) -> None:
    run, rows = tmp_path / "run", rows_of(labelled)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    train(config(run, loss="kto", data=str(labelled), batch_size=16, **weights), listener=MetricsLog())
    wanted, ratios, kl = np.array([row["label"] for row in rows]), logratios(rows), plain_kl(rows)
    value = 1 / (1 + np.exp(np.where(wanted, 1, -1) * BETA * (ratios - kl)))
    (logged,) = read_metrics(run)
    assert kl > 0.1
    assert logged["kl"] == pytest.approx(kl, rel=1e-5)
    assert logged["loss"] == pytest.approx((np.where(wanted, 1.3, 0.6) * value).mean(), rel=1e-5)
    assert logged["rewards/chosen"] == pytest.approx(BETA * ratios[wanted].mean(), rel=1e-5)
    assert logged["rewards/rejected"] == pytest.approx(BETA * ratios[~wanted].mean(), rel=1e-5)
    assert logged["rewards/margins"] == pytest.approx(BETA * (ratios[wanted].mean() - ratios[~wanted].mean()), rel=1e-4)
    assert "rewards/accuracies" not in logged and "logps/accuracies" not in logged


@pytest.mark.parametrize("loss", UNPAIRED)
def test_pairs_are_two_completions_each(tmp_path: Path, labelled: Path, loss: str) -> None:
    """The same loss and gradient as from the rows that TRL makes of pairs."""
    as_pairs, as_rows = tmp_path / "pairs", tmp_path / "rows"
    train(config(as_pairs, loss=loss, batch_size=8), listener=MetricsLog())
    train(config(as_rows, loss=loss, data=str(labelled), batch_size=16), listener=MetricsLog())
    one, other = gradient(as_pairs), gradient(as_rows)
    assert np.linalg.norm(one - other) <= 3e-6 * np.linalg.norm(one)
    (of_pairs,), (of_rows,) = read_metrics(as_pairs), read_metrics(as_rows)
    for name in ("loss", "grad_norm", "logps/chosen"):
        assert of_rows[name] == pytest.approx(of_pairs[name], rel=3e-6), name
    assert of_pairs["rewards/accuracies"] >= 0.5  # pairs are still measured as pairs


@pytest.mark.parametrize("loss", UNPAIRED)
def test_a_step_is_the_same_however_rows_are_cut(tmp_path: Path, labelled: Path, loss: str) -> None:
    rows = [row for i, row in enumerate(rows_of(labelled)) if i % 3]  # unlike numbers of either label
    file = write_rows(tmp_path / "some.jsonl", rows)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run, limit in ((whole, "4GB"), (cut, "1MB")):
        train(config(run, loss=loss, data=str(file), batch_size=len(rows), memory_limit=limit), listener=MetricsLog())
    one, other = gradient(whole), gradient(cut)
    assert np.linalg.norm(one - other) <= 2e-6 * np.linalg.norm(one)


def test_bco_keeps_the_mean_reward_of_all_batches(tmp_path: Path, labelled: Path) -> None:
    """With a rate of zero, rewards stay what they are, and each step's shift is the mean of all so far."""
    run, rows = tmp_path / "run", rows_of(labelled)
    train(config(run, loss="bco", data=str(labelled), batch_size=6, iters=5, learning_rate=0.0), listener=MetricsLog())
    rewards, wanted = BETA * logratios(rows), np.array([row["label"] for row in rows])
    seen: list[float] = []
    for step, logged in enumerate(read_metrics(run)):
        batch = ShuffledEpochs(16, 6, seed=0).batch(step)
        seen += list(rewards[batch])
        expected = nls(np.where(wanted[batch], 1, -1) * (rewards[batch] - np.mean(seen))).mean()
        assert logged["loss"] == pytest.approx(expected, rel=1e-5), step


def test_beta_dpo_keeps_the_mean_margin_of_all_batches(tmp_path: Path) -> None:
    run, pairs = tmp_path / "run", rows_of(PAIRS)
    knobs = {"loss": "beta_dpo", "beta_dpo_momentum": 0.7, "beta_dpo_alpha": 2.0}
    train(config(run, batch_size=3, iters=5, learning_rate=0.0, **knobs), listener=MetricsLog())
    chosen, rejected = np.split(logratios(split(pairs)), 2)
    margins, usual = chosen - rejected, 0.0
    for step, logged in enumerate(read_metrics(run)):
        batch = margins[ShuffledEpochs(8, 3, seed=0).batch(step)]
        usual = 0.7 * usual + 0.3 * BETA * batch.mean()
        beta = max(1e-3, BETA * (1 + 2.0 * (BETA * batch.mean() - usual)))
        assert logged["loss"] == pytest.approx(nls(beta * batch).mean(), rel=1e-5), step


def test_a_moving_reference_is_the_policy_of_a_while_ago(tmp_path: Path) -> None:
    """Moved whole, it is the policy to the bit: then log-ratios are zero, and the loss log 2."""
    run = tmp_path / "run"
    knobs = {
        "reference_sync_steps": 2,
        "reference_mixup": 1.0,
        "iters": 5,
        "learning_rate": 0.05,
        "valid_data": str(PAIRS),
    }
    train(config(run, steps_per_eval=1, **knobs), listener=MetricsLog())
    evaluations = [line for line in read_metrics(run) if "eval_loss" in line]
    moved = [line["eval_rewards/margins"] == 0 for line in evaluations]
    assert moved == [False, False, True, False, True, False]
    assert evaluations[2]["eval_loss"] == pytest.approx(np.log(2), rel=1e-6)


def test_a_reference_that_moves_half_way_is_half_way(tmp_path: Path) -> None:
    """Weights are mixed: of the moved reference, one layer's update is the mixture of both policies'."""
    run = tmp_path / "run"
    train(config(run, iters=2, learning_rate=0.05, reference_sync_steps=1, reference_mixup=0.3, save_every=1))
    first, second = (run / "checkpoints" / f"000000{step}" for step in (1, 2))
    name = "model.layers.0.self_attn.q_proj.lora_"

    def update(tensors: dict[str, Any]) -> np.ndarray:
        return np.array(tensors[f"{name}a"]).astype(np.float64) @ np.array(tensors[f"{name}b"]).astype(np.float64)

    policies = [update(mx.load(str(folder / "adapters.safetensors"))) for folder in (first, second)]
    expected = 0.3 * policies[1] + 0.7 * 0.3 * policies[0]  # it began as the base model
    found = update(read_training_state(second).scorer.tensors)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("stop_at", mostly_slow([1, 4], 2))
@pytest.mark.parametrize(
    "knobs",
    [{"loss": "kto"}, {"loss": "bco"}, {"loss": "beta_dpo"}, {"reference_sync_steps": 2, "reference_mixup": 0.6}],
    ids=["kto", "bco", "beta_dpo", "moving reference"],
)
def test_stopped_and_resumed_is_the_same_to_the_byte(tmp_path: Path, knobs: dict[str, Any], stop_at: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"batch_size": 3, "iters": 6, "learning_rate": 1e-2, "optimizer": "adamw", "dropout": 0.0, **knobs}
    train(config(whole, **settings), listener=MetricsLog())
    listener = StopAfter(stop_at)
    with pytest.raises(Interrupted):
        train(config(cut, **settings), listener=listener, stop=listener.stop)
    train(config(cut, **settings), listener=MetricsLog(), resume=True)
    one, other = ((run / "adapters.safetensors").read_bytes() for run in (whole, cut))
    assert one == other


def test_demonstrations_need_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the reference policy was run")

    monkeypatch.setattr("mlx_dpo.evaluation.reference_setup.CachedReference", refused)
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows_of(PAIRS)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "run"
    knobs = {"loss": "sft", "data": str(file), "valid_data": str(file)}
    settings = config(run, **knobs).replace(reference="initial")
    train(settings, listener=MetricsLog())
    base, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    ids = [plain.completion_ids(tokenizer, row["prompt"], row["chosen"]) for row in rows_of(PAIRS)]
    expected = -sum(plain.logp(base, *one) for one in ids) / sum(len(completion) for _, completion in ids)
    before = read_metrics(run)[0]
    assert before["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert not any("reward" in name for line in read_metrics(run) for name in line)
    measured = evaluate(TrainConfig(model=str(CHECKPOINT), data=str(file), loss="sft"), adapter_path=TRL / "adapter")
    assert measured["completions"] == 8 and measured["loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_one_kind_are_noticed(tmp_path: Path, labelled: Path) -> None:
    class Notes(Listener):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def on_note(self, text: str) -> None:
            self.notes.append(text)

    wanted = write_rows(tmp_path / "wanted.jsonl", [row for row in rows_of(labelled) if row["label"]])
    for file, noticed in ((labelled, False), (wanted, True)):
        heard = Notes()
        train(config(tmp_path / file.stem, loss="kto", data=str(file), batch_size=4), listener=heard)
        assert any("are all labelled true" in note for note in heard.notes) == noticed


def test_rows_of_the_wrong_kind_are_refused(tmp_path: Path, labelled: Path) -> None:
    unlabelled = write_rows(tmp_path / "unlabelled.jsonl", [{"prompt": "q", "completion": "a"}])
    for knobs, says in (
        (
            {"loss": "sigmoid", "data": str(labelled)},
            r"labelled.jsonl:1: `completion`: a single completion is not a pair",
        ),
        ({"loss": "kto", "data": str(unlabelled)}, r"unlabelled.jsonl:1: `label`: is missing"),
        ({"loss": "kto", "data": str(labelled), "valid_data": str(PAIRS)}, r"held-out rows are of another kind"),
        ({"loss": "kto", "data": str(labelled), "ld_alpha": 0.5}, r"`ld_alpha`: this applies to pairs"),
        ({"loss": "kto,sigmoid", "data": str(labelled)}, r"is not a pair"),
    ):
        with pytest.raises(UserError, match=says):
            train(config(tmp_path / "run", **knobs))
