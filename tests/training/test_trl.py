"""Full-batch AdamW steps from a given adapter, against the numbers TRL gave (tests/trl/make_reference.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import TrainConfig, train
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.evaluation.example_sets import examples_from_rows
from mlx_dpo.forward.model_loading import load_tokenizer
from mlx_dpo.objectives import LOSS_FUNCTIONS, LOSS_SETTINGS
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of
from tests.marks import mostly_slow

REFERENCE = json.loads((TRL / "reference.json").read_text())
RAW_PAIRS = TRL / "raw_pairs.jsonl"
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")
LONG = {"sigmoid", "sigmoid_initial", "label_smoothing", "robust"}  # twelve steps: rounding has time to add up
FREE = {"cpo", "cpo_options", "simpo", "simpo_options"}
NAMES = {"f_divergence_type": "f_divergence"}  # what TRL calls otherwise
VALUES = {"js_divergence": "js", "alpha_divergence": "alpha"}
ORPO = ("orpo", "orpo_beta")
SHORT = [name for name in REFERENCE["runs"] if name not in LONG | FREE | {*ORPO}]


def knobs(name: str) -> dict[str, Any]:
    """The knobs of one of TRL's runs, from its options."""
    if name == "label_smoothing":  # conservative DPO, a sum of two losses there
        return {"label_smoothing": 0.1}
    return knobs_of(name, REFERENCE["runs"][name]["options"])


def knobs_of(name: str, options: dict[str, Any]) -> dict[str, Any]:
    losses = options.get("loss_type", ["sigmoid"])
    if name in FREE:
        losses = [{"sigmoid": "cpo", "simpo": "simpo"}[losses]]
    weights = options.get("loss_weights", [1.0] * len(losses))
    loss = ",".join(f"{loss}={weight}" for loss, weight in zip(losses, weights, strict=True))
    used = [knob for one in losses for knob in LOSS_FUNCTIONS[one].settings]
    given = {NAMES.get(k, k): VALUES.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    more = [knob for knob in ("ld_alpha", "use_weighting") if knob in given]
    return {"loss": loss, **{k: v for k, v in given.items() if (k in LOSS_SETTINGS and k in used) or k in more}}


def run(tmp_path: Path, **given: Any) -> list[dict[str, float]]:
    """The metrics of each step of a run as TRL's were."""
    settings = REFERENCE["settings"]
    defaults = {"data": str(PAIRS), "iters": 3, "beta": settings["beta"]}
    config = TrainConfig.from_mapping(
        {
            "model": str(CHECKPOINT),
            "adapter_path": str(tmp_path / "run"),
            "init_adapter": str(TRL / "adapter"),
            "valid_pairs": 0,
            "batch_size": 8,
            "learning_rate": settings["learning_rate"],
            "lr_schedule": "constant",
            "warmup": 0,
            "max_grad_norm": settings["max_grad_norm"],
            "steps_per_report": 1,
            **defaults,
            **given,
        }
    )
    train(config, listener=MetricsLog())
    return read_metrics(tmp_path / "run")


# `test_every_loss.py` splits the batch of every loss, so that the second only repeats both.
MEMORY_LIMITS = [
    pytest.param("4GB", id="whole batch"),
    pytest.param("1MB", id="example by example", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("memory_limit", MEMORY_LIMITS)
@pytest.mark.parametrize("name", sorted(LONG))
def test_twelve_steps(tmp_path: Path, name: str, memory_limit: str) -> None:
    reference = "initial" if name == "sigmoid_initial" else "base"
    ours = run(tmp_path, reference=reference, iters=12, memory_limit=memory_limit, **knobs(name))
    theirs = REFERENCE["runs"][name]["steps"]
    assert len(ours) == len(theirs) == 12
    for step, (mine, trl) in enumerate(zip(ours, theirs, strict=True), 1):
        for metric in ("loss", "grad_norm", *REWARDS):
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-3, abs=1e-3), (step, metric)
        for metric in LOGPS:
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-4), (step, metric)


@pytest.mark.parametrize("memory_limit", MEMORY_LIMITS)
@pytest.mark.parametrize("name", mostly_slow(SHORT, 3))
def test_every_loss(tmp_path: Path, name: str, memory_limit: str) -> None:
    ours = run(tmp_path, reference="base", memory_limit=memory_limit, **knobs(name))
    follows(ours, name, ("loss", *REWARDS, *LOGPS))


@pytest.mark.parametrize("name", sorted(FREE))
def test_without_a_reference(tmp_path: Path, name: str) -> None:
    ours = run(tmp_path, data=str(RAW_PAIRS), raw=True, **knobs(name))
    follows(ours, name, ("loss", *REWARDS, *(LOGPS if name.startswith("cpo") else ())))  # simpo's there are means


@pytest.mark.parametrize("name", ORPO)
def test_orpo(tmp_path: Path, name: str) -> None:
    """Its rewards, and its loss without the likelihood term, which TRL has over the prompt, too."""
    options = REFERENCE["runs"][name]["options"]
    beta = options.get("beta", REFERENCE["settings"]["beta"])
    (ours,) = run(tmp_path, data=str(RAW_PAIRS), raw=True, iters=1, loss="orpo", beta=beta)
    (theirs,) = REFERENCE["runs"][name]["steps"]
    for metric in REWARDS:
        assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4), metric
    chosen_tokens = sum(
        len(pair["chosen_input_ids"]) - len(pair["prompt_input_ids"]) for pair in REFERENCE["raw_pairs"]
    )
    nll = -8 * ours["logps/chosen"] / chosen_tokens
    assert ours["loss"] - nll == pytest.approx(theirs["loss"] - theirs["nll_loss"], rel=1e-4)


@pytest.mark.parametrize("memory_limit", MEMORY_LIMITS)
@pytest.mark.parametrize("name", mostly_slow(REFERENCE["weighting"], 3))
def test_counting_tokens_and_pairs_unalike(tmp_path: Path, name: str, memory_limit: str) -> None:
    """LD-DPO and WPO, alone, together and in sums."""
    one = REFERENCE["weighting"][name]
    ours = run(tmp_path, reference="base", memory_limit=memory_limit, **knobs_of(name, one["options"]))
    agree(ours, one["steps"], ("loss", *REWARDS, *LOGPS))
    for mine, trl in zip(ours, one["steps"], strict=True):  # weighted losses are small
        assert mine["loss"] == pytest.approx(trl["loss"], rel=1e-4)


@pytest.mark.parametrize("memory_limit", MEMORY_LIMITS)
@pytest.mark.parametrize("name", mostly_slow(REFERENCE["unpaired"], 3))
def test_unpaired(tmp_path: Path, name: str, memory_limit: str) -> None:
    """KTO and APO on pairs, which TRL makes sixteen rows of, and on nine labelled rows."""
    one = REFERENCE["unpaired"][name]
    options = one["options"]
    given = {"loss": options["loss_type"], **{k: v for k, v in options.items() if k in LOSS_SETTINGS}}
    if name.startswith("labelled"):
        given |= {"data": str(TRL / "labelled.jsonl"), "batch_size": 9}
    ours = run(tmp_path, reference="base", memory_limit=memory_limit, **given)
    kl = ("kl",) if options["loss_type"] == "kto" else ()
    agree(ours, one["steps"], ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", *LOGPS))
    for mine, trl in zip(ours, one["steps"], strict=True):  # nats: sums of some 200
        for metric in kl:
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-4, abs=2e-5)


def test_demonstrations(tmp_path: Path) -> None:
    """SFTTrainer on the chosen answers alone."""
    ours = run(tmp_path, loss="sft", data=str(TRL / "demonstrations.jsonl"), beta=None)
    agree(ours, REFERENCE["demonstrations"]["steps"], ("loss",))


def follows(ours: list[dict[str, float]], name: str, metrics: tuple[str, ...]) -> None:
    agree(ours, REFERENCE["runs"][name]["steps"], metrics)


def agree(ours: list[dict[str, float]], theirs: list[dict[str, float]], metrics: tuple[str, ...]) -> None:
    assert len(ours) == len(theirs) == 3
    for step, (mine, trl) in enumerate(zip(ours, theirs, strict=True), 1):
        for metric in metrics:  # 2e-6: what float32 sums of 200 nats leave of a reward that is all but zero
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-4, abs=2e-6), (step, metric)
        assert mine["grad_norm"] == pytest.approx(trl["grad_norm"], rel=2e-4), step


def test_texts_are_the_same_tokens_there() -> None:
    encoder = ExampleEncoder(load_tokenizer(str(CHECKPOINT)), max_length=1024, overlong="error", raw=True)
    source = examples_from_rows(rows_of(RAW_PAIRS), "rows")
    for i, theirs in enumerate(REFERENCE["raw_pairs"]):
        ours = encoder(source[i], source.location(i))
        assert ours is not None
        assert [*ours.prompt] == theirs["prompt_input_ids"]
        assert [*ours.prompt, *ours.chosen] == theirs["chosen_input_ids"]
        assert [*ours.prompt, *ours.rejected] == theirs["rejected_input_ids"]


def test_ends_at_trls_adapter(tmp_path: Path) -> None:
    test_twelve_steps(tmp_path, "sigmoid", "4GB")
    ours = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    theirs = mx.load(str(TRL / "final_adapters.safetensors"))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        np.testing.assert_allclose(np.array(ours[tensor]), np.array(theirs[tensor]), atol=1e-4)
