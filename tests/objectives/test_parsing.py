"""What --loss takes, what it refuses, and facts that stand in more than one place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo import TrainConfig, UserError
from mlx_dpo.objectives import LOSS_FUNCTIONS, LOSS_SETTINGS
from mlx_dpo.training.run import loss_from_config, resolve_loss_settings

TRLS = {"sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired"}
TRLS |= {"apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"}


def config(**knobs: Any) -> TrainConfig:
    return TrainConfig.from_mapping(knobs)


def test_all_names_are_there() -> None:
    beyond = {"dpop", "cal_dpo", "beta_dpo", "rdpo", "odpo", "tdpo", "tdpo2", "simpo", "cpo", "orpo"}
    assert TRLS | beyond | {"kto", "bco", "apo_zero_unpaired"} == set(LOSS_FUNCTIONS)
    assert loss_from_config(config(loss="dpo")).terms[0][1] is LOSS_FUNCTIONS["sigmoid"]


def test_weights() -> None:
    loss = loss_from_config(config(loss="sigmoid=0.8, bco_pair=-2e-1,sft"))
    assert [(weight, one.name) for weight, one in loss.terms] == [(0.8, "sigmoid"), (-0.2, "bco_pair"), (1, "sft")]


@pytest.mark.parametrize(
    ("knobs", "field", "says"),
    [
        ({"loss": "sigmod"}, "loss", "sigmoid"),
        ({"loss": "sigmoid=much"}, "loss", "much"),
        ({"loss": "sigmoid=0"}, "loss", "other than 0"),
        ({"loss": "sigmoid=nan"}, "loss", "nan"),
        ({"loss": "sigmoid,"}, "loss", "no objective"),
        ({"loss": "dpo=1,sigmoid=2"}, "loss", "twice"),
        ({"simpo_gamma": 1.0}, "simpo_gamma", "simpo"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing", "sigmoid, robust, exo_pair"),
        ({"loss": "ipo=1,hinge=1", "discopop_tau": 0.1}, "discopop_tau", "discopop"),
        ({"loss": "exo_pair", "label_smoothing": 0.0}, "label_smoothing", "above 0"),
        ({"loss": "aot", "f_divergence": "forward_kl"}, "f_divergence", "aot"),
        ({"loss": "sigmoid,aot", "f_divergence": "forward_kl"}, "f_divergence", "aot"),
        ({"loss": "sft", "f_divergence": "forward_kl"}, "f_divergence", "sft"),
        ({"f_divergence": "forward_kl", "f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef", "alpha"),
        ({"f_divergence": "jensen"}, "f_divergence", "jensen"),
    ],
)
def test_refused(knobs: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        loss_from_config(config(**knobs))
    assert caught.value.field == field


def test_every_knob_of_another_loss_is_refused() -> None:
    numbers = {"f_divergence": "forward_kl"}
    for name, objective in LOSS_FUNCTIONS.items():
        for knob in set(LOSS_SETTINGS) - set(objective.settings):
            with pytest.raises(UserError) as caught:
                loss_from_config(config(loss=name, **{knob: numbers.get(knob, 0.37)}))
            assert caught.value.field == knob


def test_a_knob_at_its_default_is_no_mistake() -> None:
    """As in the config that a run of another loss has left behind."""
    left_behind = resolve_loss_settings(config(loss="sigmoid"), loss_from_config(config(loss="sigmoid")))
    assert left_behind.label_smoothing == 0 and left_behind.beta == 0.1 and left_behind.simpo_gamma is None
    assert loss_from_config(left_behind.replace(loss="hinge")).settings["beta"] == 0.1


def test_the_first_objective_gives_the_default() -> None:
    assert loss_from_config(config(loss="simpo")).settings["beta"] == 2.0
    assert loss_from_config(config(loss="sigmoid,simpo")).settings["beta"] == 0.1
    assert loss_from_config(config(loss="simpo,sigmoid", beta=0.7)).settings["beta"] == 0.7


def test_no_reference_for_a_loss_without_one() -> None:
    for name in ("simpo", "cpo", "orpo"):
        given = config(loss=name)
        assert resolve_loss_settings(given, loss_from_config(given)).reference == "none"
        with pytest.raises(UserError, match="no reference"):
            resolve_loss_settings(given.replace(reference="base"), loss_from_config(given))
    for name in ("simpo,sft", "orpo,cpo"):
        assert not loss_from_config(config(loss=name)).needs_reference
    for name in ("sft", "sigmoid", "simpo,sigmoid", "sft,aot"):
        given = config(loss=name)
        assert resolve_loss_settings(given, loss_from_config(given)).reference == "initial"


def test_rpo_alpha_is_a_term_of_sft() -> None:
    assert loss_from_config(config(loss="hinge", rpo_alpha=0.3)) == loss_from_config(config(loss="hinge,sft=0.3"))
    with pytest.raises(UserError, match="twice"):
        loss_from_config(config(loss="sft", rpo_alpha=0.3))


def test_rewards() -> None:
    logps, reference, tokens = np.array([-6.0, -9.0]), np.array([-7.0, -5.0]), np.array([2.0, 3.0])
    expected = {"sigmoid": [0.1, -0.4], "sft": [0.1, -0.4], "cpo": [-0.6, -0.9], "orpo": [-0.3, -0.3]}
    for name, rewards in expected.items():
        assert loss_from_config(config(loss=name)).rewards(logps, reference, tokens) == pytest.approx(rewards)
    assert loss_from_config(config(loss="simpo")).rewards(logps, reference, tokens) == pytest.approx([-6, -6])


def test_helps_tell_the_defaults_that_signatures_have() -> None:
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(TrainConfig)}
    for knob in LOSS_SETTINGS:
        told = re.search(r"Default: (\S+?)(?:,.*| \((\w+): (\S+)\))?\.$", helps[knob])
        assert told, knob
        for name, objective in LOSS_FUNCTIONS.items():
            if knob in objective.settings:
                expected = told[3] if name == told[2] else told[1]
                assert str(objective.settings[knob]) == expected or float(expected) == objective.settings[knob], (
                    name,
                    knob,
                )


GOOD = """
import mlx.core as mx

def good(pairs, *, beta=0.5, power=2):
    return (1 - beta * pairs.margins) ** power
"""


def test_custom(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    loss = loss_from_config(config(loss=f"{file}:good=0.5,sigmoid"))
    assert loss.settings["beta"] == 0.5 and loss.settings["power"] == 2
    assert [weight for weight, _ in loss.terms] == [0.5, 1]
    assert loss_from_config(config(loss=f"{file}:good", beta=0.2)).settings["beta"] == 0.2
    with pytest.raises(UserError, match="label_smoothing"):
        loss_from_config(config(loss=f"{file}:good", label_smoothing=0.1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("x = 1", "no function 'good'"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def good(", "SyntaxError"),
        ("def good(pairs): return pairs.margin", "AttributeError"),
        ("def good(pairs): return pairs.margins.mean()", "one loss a pair"),
        ("def good(pairs): return 3", "one loss a pair"),
        ("def good(pairs, *, strength): return pairs.margins", "'strength' has no default"),
        ("def good(pairs, beta): return pairs.margins", "TypeError"),
    ],
)
def test_a_bad_custom_objective_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        loss_from_config(config(loss=f"{file}:good"))
    assert str(file) in str(caught.value)
