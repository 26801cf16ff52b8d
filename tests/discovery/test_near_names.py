"""Mistyped models, files and datasets: errors name what is near on this machine, offline too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.discovery.near_names import models_to_name
from mlx_dpo.errors import UserError
from mlx_dpo.forward.config_model import fetch_config
from mlx_dpo.forward.model_loading import find_model_folder
from tests.discovery.fake_models import Machine, config, model_files, write_hub_model, write_model
from tests.hub.server import Hub


@pytest.fixture
def models(machine: Machine) -> Machine:
    write_hub_model(machine.hub, "mlx-community/Qwen3-4B-4bit", model_files(config("qwen3")))
    write_hub_model(machine.hub, "mlx-community/Qwen3-4B-8bit-embedding", model_files(config("bert")))
    write_model(machine.lm_studio / "lmstudio-community" / "Gemma-3-1B-MLX", model_files(config("gemma3_text")))
    write_model(Path("local-model"), model_files(config("llama")))
    return machine


@pytest.mark.parametrize("find", [find_model_folder, fetch_config])
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mlx-community/Qwen3-4B-4bti", "mlx-community/Qwen3-4B-4bit"),
        ("mlx-comunity/Qwen3-4B-4bit@main", "mlx-community/Qwen3-4B-4bit"),
        ("Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit"),
        ("lmstudio-comunity/Gemma-3-1B-MLX", "lmstudio-community/Gemma-3-1B-MLX"),
        ("local-modle", "local-model"),
        ("./local-modle", "./local-model"),
    ],
)
def test_models(models: Machine, find: Callable[[str], object], typed: str, meant: str) -> None:
    with pytest.raises(UserError) as raised:
        find(typed)
    assert str(raised.value.hint).startswith(f"Did you mean `{meant}`?")


def test_nothing_is_near(models: Machine) -> None:
    with pytest.raises(UserError) as raised:
        find_model_folder("someone/entirely-different")
    assert "Did you mean" not in str(raised.value)


def test_a_model_that_is_there_is_not_suggested_for_itself(models: Machine) -> None:
    with pytest.raises(UserError) as raised:
        find_model_folder("mlx-community/Qwen3-4B-4bit@no-such-revision")
    assert "Did you mean" not in str(raised.value)


def test_a_model_of_lm_studio_in_a_config_file(models: Machine) -> None:
    """Only --model itself is looked up there."""
    with pytest.raises(UserError, match=f"LM Studio has it: --model {models.lm_studio}/lmstudio-community/Gemma"):
        find_model_folder("lmstudio-community/Gemma-3-1B-MLX")


def test_no_model_at_all(models: Machine) -> None:
    with pytest.raises(UserError, match="no model given") as raised:
        find_model_folder("")
    assert "`lmstudio-community/Gemma-3-1B-MLX`, `mlx-community/Qwen3-4B-4bit`; `mlx-dpo models`" in str(raised.value)
    for i in range(5):
        write_hub_model(models.hub, f"a/model-{i}", model_files(config("llama")))
    assert "`a/model-0`, `a/model-1`, `a/model-2` and 4 more" in models_to_name()


def test_no_model_on_the_machine(machine: Machine) -> None:
    assert "`mlx-dpo demo` needs none" in models_to_name()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("pairs.jsnol", "pairs.jsonl"),
        ("./data/trian.jsonl", "./data/train.jsonl"),
        ("data/trian.jsonl", "data/train.jsonl"),
        ("HuggingFaceH4/ultrafeedback_binarised", "HuggingFaceH4/ultrafeedback_binarized"),
        ("HuggingFaceH4/ultrafeedback_binarised:test_prefs", "HuggingFaceH4/ultrafeedback_binarized"),
    ],
)
def test_data(machine: Machine, typed: str, meant: str) -> None:
    write_hub_model(machine.hub, "HuggingFaceH4/ultrafeedback_binarized", {"README.md": {}}, "dataset")
    for name in ("pairs.jsonl", "data/train.jsonl", ".pairs.jsonl.swp"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    with pytest.raises(UserError) as raised, open_rows(typed):
        pass
    assert str(raised.value.hint).startswith(f"Did you mean `{meant}`?")


def test_online_too(hub: Hub, machine: Machine) -> None:
    """The Hub has no such model; the cache has a similar one."""
    write_hub_model(machine.hub, "mlx-community/Qwen3-4B-4bit", model_files(config("qwen3")))
    with pytest.raises(UserError) as raised:
        find_model_folder("mlx-community/Qwen3-4B-4bti")
    assert "has no repository of this name" in str(raised.value)
    assert str(raised.value.hint).startswith("Did you mean `mlx-community/Qwen3-4B-4bit`?")
