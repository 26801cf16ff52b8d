"""mlx-dpo losses, and losses as the command line takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.objectives import LOSS_FUNCTIONS
from tests.conftest import CHECKPOINT, PAIRS, TRL

Cli = Any


def test_the_table_has_all(mlx_dpo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = mlx_dpo("losses")
    assert ran.code == 0
    for name, one in LOSS_FUNCTIONS.items():
        assert f" {name} " in ran.out and one.paper.split()[0] in ran.out


def test_json_has_all_facts(mlx_dpo: Cli) -> None:
    told = json.loads(mlx_dpo("losses", "--json").out)["losses"]
    assert [one["name"] for one in told] == list(LOSS_FUNCTIONS)
    for one in told:
        assert all(one[key] for key in ("about", "formula", "rewards", "when", "paper", "knobs")), one["name"]
        assert set(one["knobs"]) <= set(TrainConfig().to_mapping())
    assert next(one for one in told if one["name"] == "simpo")["knobs"]["beta"] == 2.0


@pytest.mark.parametrize("name", [*LOSS_FUNCTIONS, "dpo"])
def test_one_loss(mlx_dpo: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    ran = mlx_dpo("losses", name)
    one = LOSS_FUNCTIONS["sigmoid" if name == "dpo" else name]
    assert ran.code == 0 and one.formula in " ".join(ran.out.split()) and one.rewards.value in ran.out
    assert all(f"--{knob.replace('_', '-')}" in ran.out for knob in one.settings)
    assert json.loads(mlx_dpo("losses", name, "--json").out)["formula"] == one.formula


def test_an_unknown_loss(mlx_dpo: Cli) -> None:
    ran = mlx_dpo("losses", "simpoo")
    assert ran.code == 2 and "`simpo`" in ran.err and not ran.out


def test_a_knob_that_the_loss_does_not_use(mlx_dpo: Cli, tmp_path: Path) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS)
    ran = mlx_dpo("train", *flags, "--adapter-path", tmp_path / "run", "--loss", "ipo", "--simpo-gamma", 1)
    assert ran.code == 2 and "--simpo-gamma" in ran.err and "used by simpo" in ran.err
    assert mlx_dpo("evaluate", *flags, "--loss", "sft=1,hinge", "--label-smoothing", 0.2).code == 2
    assert not (tmp_path / "run").exists()


def test_evaluate_with_a_loss_and_its_knobs(mlx_dpo: Cli) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", TRL / "adapter", "--json")
    mix = ("--loss", "sigmoid=0.8,bco_pair=0.2,sft=1", "--batch-size", 8)
    measured = json.loads(mlx_dpo("evaluate", *flags, *mix).out)
    theirs = json.loads((TRL / "reference.json").read_text())["runs"]["mpo"]["steps"][0]
    assert measured["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert json.loads(mlx_dpo("evaluate", *flags, "--loss", "simpo", "--simpo-gamma", 2).out)["loss"] > 2


def test_a_run_does_again_what_its_config_says(mlx_dpo: Cli, tmp_path: Path) -> None:
    for loss in ("simpo", "exo_pair", "sigmoid=1,discopop=0.5"):
        first, again = tmp_path / f"{loss}1", tmp_path / f"{loss}2"
        shared = ("train", "--iters", 1, "--adapter-path")
        assert mlx_dpo(*shared, first, "--model", CHECKPOINT, "--data", PAIRS, "--loss", loss).code == 0
        assert mlx_dpo(*shared, again, "-c", first / "config.yaml").code == 0
        assert (first / "adapters.safetensors").read_bytes() == (again / "adapters.safetensors").read_bytes()
