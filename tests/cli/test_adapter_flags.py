"""Flags of what is trained that an initial adapter, or full fine-tuning, would leave without effect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import UserError, train
from mlx_dpo.adapters.adapter_folder import read_adapter_spec
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.training.test_run import config

Cli = Callable[..., CommandResult]
ADAPTER = TRL / "adapter"
SPEC = read_adapter_spec(ADAPTER)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("fine-tune-type", "dora"),
        ("rank", 8),  # the default, and still another than the adapter's
        ("scale", 3),
        ("dropout", 0.3),
        ("lora-keys", "self_attn.q_proj"),
        ("num-layers", 1),
        ("fuse-bits", 4),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_flag_that_contradicts_the_adapter_is_refused(
    mlx_dpo: Cli, tmp_path: Path, command: str, flag: str, value: Any
) -> None:
    assert SPEC.rank != 8 and SPEC.fine_tune_type == "lora"
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path / "run", "--init-adapter", ADAPTER)
    ran = mlx_dpo(command, *flags, f"--{flag}", value)
    assert ran.code == 2 and ran.out == ""
    assert f"`--{flag}`" in ran.err and str(ADAPTER) in ran.err.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_flags_that_agree_with_the_adapter_pass(mlx_dpo: Cli, tmp_path: Path) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path / "run", "--init-adapter", ADAPTER)
    own = ("--rank", SPEC.rank, "--scale", SPEC.scale, "--fine-tune-type", "lora", "--num-layers", 99)
    assert mlx_dpo("train", *flags, *own, "--iters", 1).code == 0
    assert mlx_dpo("train", *flags, "--iters", 2, "--resume-anyway").code == 0  # the config has the adapter's settings


@pytest.mark.parametrize("flag", ["rank", "dropout", "scale"])
def test_settings_of_adapters_have_no_effect_in_full_fine_tuning(mlx_dpo: Cli, tmp_path: Path, flag: str) -> None:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--adapter-path", tmp_path / "run")
    ran = mlx_dpo("train", *flags, "--fine-tune-type", "full", f"--{flag}", 0.5 if flag == "dropout" else 8)
    assert ran.code == 2 and f"`--{flag}`" in ran.err


def write_config(folder: Path, **changes: Any) -> Path:
    """The adapter, with fields of its config replaced, or left out where None."""
    shutil.copytree(ADAPTER, folder)
    values = {**json.loads((folder / "adapter_config.json").read_text()), **changes}
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    return folder


def test_the_type_that_mlx_lm_lora_writes_is_read(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "dora", fine_tune_type=None, train_type="dora")
    assert read_adapter_spec(folder).fine_tune_type == "dora"
    assert read_adapter_spec(write_config(tmp_path / "lora", train_type="dora")).fine_tune_type == "lora"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": None}, "num_layers is missing"),
        ({"lora_parameters": {"keys": ["a"]}}, "lora_parameters.rank, lora_parameters.scale is missing"),
        ({"lora_parameters": [1]}, "`lora_parameters`: expected an object"),
        ({"fine_tune_type": "qlora"}, "'qlora' is not one of lora, dora, full"),
        ({"num_layers": "all"}, "not an mlx-lm adapter config"),
    ],
)
def test_what_an_adapter_config_lacks_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        train(config(tmp_path / "run", init_adapter=str(write_config(tmp_path / "start", **changes))))
    assert "another model" not in str(raised.value) and "adapter_config.json" in str(raised.value)
