"""What --loss accepts and refuses, and facts that are stated in two places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo import TrainConfig, UserError
from mlx_dpo.cli.loss_defaults import loss_default_text
from mlx_dpo.evaluation.loss_setup import loss_from_config, resolve_loss_settings
from mlx_dpo.objectives import LOSS_FUNCTIONS, LOSS_SETTINGS, losses
from mlx_dpo.objectives.loss_registry import declared_losses

TRL_LOSSES = {"sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot"}
TRL_LOSSES |= {"aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"}


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.from_mapping(settings)


def test_all_names_are_there() -> None:
    beyond = {"dpop", "cal_dpo", "beta_dpo", "rdpo", "odpo", "tdpo", "tdpo2", "simpo", "cpo", "orpo"}
    assert TRL_LOSSES | beyond | {"kto", "bco", "apo_zero_unpaired", "reward", "xpo", "nash_md"} == set(
        LOSS_FUNCTIONS
    ) - {"ppo", "rloo"}
    assert loss_from_config(config(loss="dpo")).terms[0][1] is LOSS_FUNCTIONS["sigmoid"]


def test_weights() -> None:
    loss = loss_from_config(config(loss="sigmoid=0.8, bco_pair=-2e-1,sft"))
    assert [(weight, f.name) for weight, f in loss.terms] == [(0.8, "sigmoid"), (-0.2, "bco_pair"), (1, "sft")]


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"loss": "sigmod"}, "loss", "sigmoid"),
        ({"loss": "sigmoid=much"}, "loss", "much"),
        ({"loss": "sigmoid=0"}, "loss", "other than 0"),
        ({"loss": "sigmoid=nan"}, "loss", "nan"),
        ({"loss": "sigmoid,"}, "loss", "no loss"),
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
        ({"loss": "reward", "beta": 0.3}, "beta", "does not use it"),
        ({"loss": "sigmoid,reward"}, "loss", "can't be summed"),
        ({"loss": "reward", "rpo_alpha": 0.1}, "loss", "can't be summed"),
        ({"loss": "reward", "use_weighting": True}, "use_weighting", "no log-probs"),
        ({"loss": "reward", "ld_alpha": 0.5}, "ld_alpha", "no log-probs"),
    ],
)
def test_refused(settings: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        loss_from_config(config(**settings))
    assert caught.value.field == field


def test_every_setting_of_another_loss_is_refused() -> None:
    values = {"f_divergence": "forward_kl"}
    for name, function in LOSS_FUNCTIONS.items():
        for setting in set(LOSS_SETTINGS) - set(function.settings):
            with pytest.raises(UserError) as caught:
                loss_from_config(config(loss=name, **{setting: values.get(setting, 0.37)}))
            assert caught.value.field == setting


def test_a_setting_at_its_default_is_accepted() -> None:
    """As in the config that a run with another loss has saved."""
    saved = resolve_loss_settings(config(loss="sigmoid"), loss_from_config(config(loss="sigmoid")))
    assert saved.label_smoothing == 0 and saved.beta == 0.1 and saved.simpo_gamma is None
    assert loss_from_config(saved.replace(loss="hinge")).settings["beta"] == 0.1


def test_the_first_loss_determines_the_default() -> None:
    assert loss_from_config(config(loss="simpo")).settings["beta"] == 2.0
    assert loss_from_config(config(loss="sigmoid,simpo")).settings["beta"] == 0.1
    assert loss_from_config(config(loss="simpo,sigmoid", beta=0.7)).settings["beta"] == 0.7


def test_no_reference_for_a_loss_without_one() -> None:
    for name in ("simpo", "cpo", "orpo", "reward"):
        loss_config = config(loss=name)
        assert resolve_loss_settings(loss_config, loss_from_config(loss_config)).reference == "none"
        with pytest.raises(UserError, match="no reference"):
            resolve_loss_settings(loss_config.replace(reference="base"), loss_from_config(loss_config))
        with pytest.raises(UserError, match="can be updated"):
            resolve_loss_settings(loss_config.replace(reference_sync_steps=5), loss_from_config(loss_config))
    for name in ("simpo,sft", "orpo,cpo"):
        assert not loss_from_config(config(loss=name)).needs_reference
    for name in ("sft", "sigmoid", "simpo,sigmoid", "sft,aot"):
        loss_config = config(loss=name)
        assert resolve_loss_settings(loss_config, loss_from_config(loss_config)).reference == "initial"


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
    assert loss_from_config(config(loss="reward")).rewards(logps, np.zeros(2), tokens).tolist() == [-6, -9]


def test_help_states_the_defaults_of_signatures() -> None:
    for setting in LOSS_SETTINGS:
        stated = re.fullmatch(r"(\S+)(?: \((\w+): (\S+)\))?", loss_default_text(setting))
        assert stated, setting
        for name, function in LOSS_FUNCTIONS.items():
            if setting in function.settings:
                default, text = function.settings[setting], stated[3] if name == stated[2] else stated[1]
                assert str(default) == text or float(text) == default, (name, setting)


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
    ("text", "message"),
    [
        (None, "no such file"),
        ("x = 1", "no function 'good'"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def good(", "SyntaxError"),
        ("def good(pairs): return pairs.margin", "AttributeError"),
        ("def good(pairs): return pairs.margins.mean()", "one loss per pair"),
        ("def good(pairs): return 3", "one loss per pair"),
        ("def good(pairs, *, strength): return pairs.margins", "'strength' has no default"),
        ("def good(pairs, beta): return pairs.margins", "TypeError"),
    ],
)
def test_invalid_custom_loss(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        loss_from_config(config(loss=f"{file}:good"))
    assert str(file) in str(caught.value)


SORTING = """
import mlx.core as mx
from mlx_dpo.objectives import {decorator}

@{decorator}(whole_batch=True, keeps_pair_order=False)
def sorting(pairs, *, beta=0.1):
    return mx.sort(pairs.margins)

def aot_mine(pairs, *, beta=0.1):
    return pairs.margins
"""


@pytest.mark.parametrize("decorator", ["declare_loss", "objective"])
def test_what_a_custom_loss_declares(tmp_path: Path, decorator: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SORTING.format(decorator=decorator))
    assert loss_from_config(config(loss=f"{file}:sorting")).whole_batch
    with pytest.raises(UserError, match="can't be weighted"):
        loss_from_config(config(loss=f"{file}:sorting", use_weighting=True))
    assert loss_from_config(config(loss=f"{file}:aot_mine", use_weighting=True)).use_weighting


def test_a_loss_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added.py").write_text(SORTING.format(decorator="declare_loss"))
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    assert list(declared_losses()) == [*LOSS_FUNCTIONS, "sorting"]


def test_a_setting_of_a_loss_must_be_a_field_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SORTING.format(decorator="declare_loss").replace("beta=0.1", "beta=0.1, sharpness=2.0")
    (tmp_path / "with_setting.py").write_text(text)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    with pytest.raises(
        TypeError, match=r"loss sorting .*TrainConfig: sharpness\. Add them to mlx_dpo/settings/objective_settings\.py"
    ):
        declared_losses()
