"""`plan --config-only` against the model with its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.forward.activation_memory import pair_of_length
from mlx_dpo.forward.config_model import build_model
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.training.components import TrainInputs, build_components
from mlx_dpo.training.config_planner import estimate_from_config
from mlx_dpo.training.listener import Listener
from tests.cli.conftest import CommandResult, mlx_dpo  # noqa: F401 (a fixture)
from tests.conftest import CHECKPOINT, PAIRS, write_rows
from tests.forward.families import COMMON
from tests.hub.server import Hub

QWEN_8B = {
    **{"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6},
    **{"vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": False},
    **{"torch_dtype": "bfloat16", "quantization": {"bits": 4, "group_size": 64}},
}


def folder_of(config: dict[str, Any], folder: Path, names: list[str] | None = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if names is not None:
        index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """The bundled model's folder without its weights and its tokenizer."""
    (tmp_path / "bare").mkdir()
    shutil.copy(CHECKPOINT / "config.json", tmp_path / "bare")
    return str(tmp_path / "bare")


def test_it_is_the_estimate_that_training_measures(bare: str) -> None:
    inputs = TrainInputs(
        TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), valid_pairs=0), None, None, None, None, Listener()
    )
    build_components(inputs)  # the first in a process takes 30 kB more
    before = mx.get_active_memory()
    planned = estimate_from_config(TrainConfig(model=bare), [300, 1500])
    measured: MemoryModel = build_components(inputs).memory_model
    assert planned.weights == sum(v.nbytes for _, v in tree_flatten(load_model(str(CHECKPOINT)).model.parameters()))
    assert planned.held == pytest.approx(measured.resident_bytes - before, rel=0.05)
    assert planned.num_checkpointable == measured.network.num_checkpointable
    for row in planned.lengths:
        peak = measured.peak_bytes(pair_of_length(row.tokens)) - before
        assert row.peak == pytest.approx(peak, rel=0.1), row.tokens


@pytest.mark.slow
def test_an_8b_model_takes_no_memory_of_its_weights(tmp_path: Path) -> None:
    mx.reset_peak_memory()
    before = mx.get_peak_memory()
    planned = estimate_from_config(TrainConfig(model=folder_of(QWEN_8B, tmp_path), memory_limit="24GB"))
    assert mx.get_peak_memory() - before < 1e7
    assert planned.parameters == pytest.approx(8.19e9, rel=0.01) and planned.weights == pytest.approx(4.61e9, rel=0.01)
    assert [row.tokens for row in planned.lengths] == [256, 512, 1024, 2048]
    peaks = [row.peak for row in planned.lengths]
    assert peaks == sorted(peaks) and planned.held < peaks[0] and 512 < planned.longest_pair < 16_384


def test_the_index_says_which_layers_are_quantized() -> None:
    config = {**COMMON, "model_type": "llama", "quantization": {"bits": 4, "group_size": 32}}
    names = [name for name, _ in tree_flatten(build_model(config).parameters())]
    assert "lm_head.scales" in names
    plain_head = frozenset(name for name in names if name not in ("lm_head.scales", "lm_head.biases"))
    assert "scales" not in build_model(config, plain_head).lm_head
    own = {"lm_head": {"bits": 8, "group_size": 32}}
    assert build_model({**config, "quantization": {**config["quantization"], **own}}).lm_head.bits == 8


@pytest.mark.parametrize(
    ("names", "settings", "is_tied"), [([], {}, True), ([], {"tie_word_embeddings": False}, False)]
)
def test_gemma_3_has_a_head_of_its_own_only_if_it_says_so(
    names: list[str], settings: dict[str, Any], is_tied: bool
) -> None:
    config = {name: value for name, value in COMMON.items() if name != "tie_word_embeddings"}
    model = build_model({**config, "model_type": "gemma3_text", **settings}, frozenset(names))
    assert ("lm_head" not in model) == is_tied
    assert "lm_head" in build_model({**config, "model_type": "gemma3_text"}, frozenset(["lm_head.weight"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "martian"}, "mlx-lm knows no model type 'martian'"),
        ({}, "names no model_type"),
        ({"model_type": "llama", "hidden_size": 64}, "can't be built from its config.json|missing"),
        ({**COMMON, "model_type": "llama", "torch_dtype": "int8"}, "data type 'int8'"),
        ({**COMMON, "model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "by gptq"),
    ],
)
def test_what_cannot_be_estimated_is_said(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        estimate_from_config(TrainConfig(model=folder_of(config, tmp_path)))


def test_of_a_hub_model_only_config_and_index_are_fetched(hub: Hub) -> None:
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir()}
    hub.store.create("models", "me/tiny")
    hub.store.commit("models", "me/tiny", "main", "model", files)
    planned = estimate_from_config(TrainConfig(model="me/tiny"), [100])
    assert planned.weights == estimate_from_config(TrainConfig(model=str(CHECKPOINT)), [100]).weights
    assert hub.count_requests("GET", r"resolve.*safetensors$") == hub.count_requests("GET", r"resolve.*tokenizer") == 0


def test_the_command(mlx_dpo: Callable[..., CommandResult], bare: str, tmp_path: Path) -> None:  # noqa: F811
    flags = ["--config-only", "--model", bare, "--length", 100, "--length", 4000]
    table = mlx_dpo("plan", *flags)
    assert table.code == 0 and "surely fit" in table.out and "4,000" in table.out
    assert "No pair is certain to fit" in mlx_dpo("plan", *flags, "--memory-limit", "1MB").out
    planned = json.loads(mlx_dpo("plan", *flags, "--json").out)
    assert [row["tokens"] for row in planned["lengths"]] == [100, 4000] and planned["longest_pair"] > 0
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    refused = mlx_dpo("plan", "--model", CHECKPOINT, "--data", rows, "--length", 100)
    assert refused.code == 2 and "--config-only" in refused.err
    assert mlx_dpo("plan", "--config-only", "--model", bare, "--init-adapter", tmp_path).code == 2
