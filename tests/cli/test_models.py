"""`mlx-dpo models`, and --model with what it lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT, PAIRS
from tests.discovery.fake_models import (
    QUANTIZED,
    Machine,
    config,
    model_files,
    write_hub_model,
    write_model,
)

Cli = Callable[..., CommandResult]
GGUF = {"Tiny-Q4_K_M.gguf": 5000}


@pytest.fixture
def listed(machine: Machine) -> Machine:
    huge = config("llama", hidden_size=16384, intermediate_size=131072, num_hidden_layers=4, head_dim=4096)
    write_hub_model(machine.hub, "mlx-community/Tiny-4bit", model_files(config("llama", quantization=QUANTIZED)))
    write_hub_model(machine.hub, "a/Huge", model_files(huge))
    write_hub_model(machine.hub, "a/Partly", model_files(config("qwen3"), shards=4, present=3))
    write_hub_model(machine.hub, "a/embedding", model_files(config("bert")))
    write_model(machine.lm_studio / "publisher" / "Tiny-GGUF", GGUF)
    write_model(machine.lm_studio / "publisher" / "Tiny-MLX", model_files(config("qwen3")))
    return machine


def models(mlx_dpo: Cli, *arguments: object) -> dict[str, Any]:
    ran = mlx_dpo("models", "--json", *arguments)
    assert ran.code == 0
    result = json.loads(ran.out)
    return {**result, "by_name": {model["name"]: model for model in result["models"]}}


def test_it_lists_what_can_be_trained_first(mlx_dpo: Cli, listed: Machine) -> None:
    result = models(mlx_dpo)
    names = [model["name"] for model in result["models"]]
    assert names == [
        "mlx-community/Tiny-4bit",
        "publisher/Tiny-MLX",
        "a/Huge",
        "a/Partly",
        "a/embedding",
        "publisher/Tiny-GGUF",
    ]
    tiny, huge, partly, embedding, gguf = (result["by_name"][name] for name in (names[0], *names[2:]))
    assert {"model_type": "llama", "bits": 4, "complete": True, "trainable": True, "fits": True}.items() <= tiny.items()
    assert tiny["longest_pair"] > 1024 and tiny["peak_bytes"] < result["limit"] and tiny["source"] == "hub"
    assert huge["fits"] is False and huge["longest_pair"] == 0 and huge["peak_bytes"] > result["limit"]
    assert partly["complete"] is False and partly["missing"] == "1 of 4 weight files" and partly["fits"]
    assert not embedding["trainable"] and embedding["reason"] == "mlx-lm knows no model type 'bert'"
    assert not gguf["trainable"] and "GGUF" in gguf["reason"] and gguf["bytes"] == 5000
    assert result["by_name"]["publisher/Tiny-MLX"]["source"] == "lm_studio"
    assert result["tokens"] == 1024 and [place["place"] for place in result["searched"]][:2] == [
        "Hub cache",
        "LM Studio",
    ]


def test_the_table(mlx_dpo: Cli, listed: Machine) -> None:
    ran = mlx_dpo("models")
    assert ran.code == 0
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert [line for line in ran.out.splitlines() if line.endswith(":")] == [
        "Can be trained here, with pairs of up to:",
        "Too large for this machine:",
        "Partly downloaded:",
        "Can't be trained:",
    ]
    tiny = next(line for line in lines if line.startswith("mlx-community/Tiny-4bit llama 4-bit"))
    assert tiny.endswith(" tokens")
    assert any("1 of 4 weight files missing; then" in line for line in lines)
    assert any("GGUF, for llama.cpp; mlx-lm reads safetensors" in line for line in lines)
    assert [line for line in ran.out.splitlines() if len(line) > 80] == []


def test_estimates_are_cached(mlx_dpo: Cli, listed: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models(mlx_dpo, "--quick")["by_name"]["mlx-community/Tiny-4bit"]["fits"] is None
    assert "memory not estimated" in mlx_dpo("models", "--quick").out
    first = models(mlx_dpo)
    monkeypatch.setattr("mlx_dpo.training.estimate_cache.estimate_from_config", pytest.fail)
    assert models(mlx_dpo) == first == models(mlx_dpo, "--quick")
    assert json.loads(mlx_dpo("cache", "--json").out)["estimated_models"] == 4
    assert "the memory of 4 models" in mlx_dpo("cache", "--clear").out
    assert models(mlx_dpo, "--quick")["by_name"]["mlx-community/Tiny-4bit"]["fits"] is None


def test_a_changed_config_is_estimated_again(mlx_dpo: Cli, machine: Machine) -> None:
    folder = write_model(Path("model"), model_files(config("llama")))
    small = models(mlx_dpo, folder)["models"][0]["parameters"]
    write_model(folder, {"config.json": config("llama", num_hidden_layers=3)})
    assert models(mlx_dpo, folder)["models"][0]["parameters"] > small


def test_one_odd_model_does_not_hide_the_others(mlx_dpo: Cli, machine: Machine) -> None:
    awq = config("llama", quantization_config={"quant_method": "awq", "bits": 4})
    write_model(Path("models/odd"), model_files(config("llama", num_attention_heads=0, head_dim=None)))
    write_model(Path("models/awq"), model_files(awq))
    write_model(Path("models/good"), model_files(config("llama")))
    result = models(mlx_dpo, "models")
    assert "memory not known" in result["by_name"]["models/odd"]["reason"]
    assert result["by_name"]["models/good"]["fits"] is True
    other = result["by_name"]["models/awq"]
    assert other["trainable"] and other["fits"] is None and "quantized by awq" in other["reason"]


def test_nothing_is_found(mlx_dpo: Cli, machine: Machine) -> None:
    ran = mlx_dpo("models")
    assert ran.code == 0 and "No models were found" in ran.out
    assert f"{machine.hub} (Hub cache, not there)" in ran.out and f"{machine.lm_studio} (LM Studio" in ran.out
    assert "hf download" in ran.out and "mlx-dpo demo" in ran.out
    assert models(mlx_dpo)["models"] == []
    Path("my-models").mkdir()
    ran = mlx_dpo("models", "my-modles")
    assert ran.code == 2 and ran.err == "error: my-modles: there is no such folder\nDid you mean `my-models`?\n"


def test_a_model_of_lm_studio_is_used(mlx_dpo: Cli, machine: Machine) -> None:
    folder = machine.lm_studio / "publisher" / "Tiny"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(CHECKPOINT)
    ran = mlx_dpo("train", "--model", "publisher/Tiny", "--data", PAIRS, "--iters", 1, "--adapter-path", "run")
    assert ran.code == 0
    assert f"publisher/Tiny is not in the Hub cache; the model is LM Studio's, in {folder}." in ran.err
    assert json.loads(Path("run/adapter_config.json").read_text())["model"] == str(folder)
    ran = mlx_dpo("plan", "--config-only", "--model", "publisher/Tiny", "--length", 100, "--json")
    assert ran.code == 0 and "LM Studio's" in ran.err and json.loads(ran.out)["model_type"] == "qwen3"


def test_a_model_of_the_hub_cache_is_used_offline(mlx_dpo: Cli, machine: Machine) -> None:
    files = {file.name: file for file in CHECKPOINT.iterdir()}
    snapshot = write_hub_model(machine.hub, "me/Tiny", dict.fromkeys(files, 1))
    for name, file in files.items():
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(file.resolve())
    assert [model["name"] for model in models(mlx_dpo)["models"]] == ["me/Tiny"]
    ran = mlx_dpo("train", "--model", "me/Tiny", "--data", PAIRS, "--iters", 1, "--adapter-path", "run")
    assert ran.code == 0 and "LM Studio" not in ran.err


def test_errors_name_what_is_there(mlx_dpo: Cli, machine: Machine) -> None:
    write_hub_model(machine.hub, "mlx-community/Tiny-4bit", model_files(config("llama")))
    ran = mlx_dpo("train", "--data", PAIRS)
    assert (
        ran.code == 2
        and "`--model`: no model given" in ran.err
        and "On this machine: `mlx-community/Tiny-4bit`" in ran.err
    )
    ran = mlx_dpo("plan", "--config-only", "--model", "mlx-community/Tiny-4bti")
    assert ran.code == 2 and "Did you mean `mlx-community/Tiny-4bit`?" in ran.err
    ran = mlx_dpo("sample", "--prompts", PAIRS)
    assert ran.code == 2 and "`mlx-community/Tiny-4bit`" in ran.err
    Path("pairs.jsonl").write_text("")
    ran = mlx_dpo("train", "--model", CHECKPOINT, "--data", "pairs.jsnl")
    assert ran.code == 2 and "Did you mean `pairs.jsonl`?" in ran.err
