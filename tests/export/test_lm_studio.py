"""Fused folders where LM Studio looks for models, read as its engine reads them.

LM Studio lists `models/PUBLISHER/NAME/`. Its engine (mlx-engine on GitHub: generate.py, batched_model_kit.py,
eot_tokens.py) takes a folder with a `vision_config` for a vision model, loads others by mlx_lm.load, adds well-known
tokens to those that end a completion, and generates by mlx-lm's BatchGenerator. The program itself is not run here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.generate import BatchGenerator

from mlx_dpo.demo import MODEL
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.export.fuse.model_writer import write_shards
from tests.cli.conftest import CommandResult
from tests.conftest import CHECKPOINT
from tests.export.test_gguf import make_adapter
from tests.export.tiny import make_model

Cli = Callable[..., CommandResult]
END_TOKENS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>", "_<EOT>")


def listed(models: Path) -> list[str]:
    """The models that LM Studio lists: PUBLISHER/NAME with a config and weights."""
    folders = [file.parent for file in models.glob("*/*/config.json") if list(file.parent.glob("*.safetensors"))]
    return [str(folder.relative_to(models)) for folder in folders if not folder.name.startswith(".")]


def check_folder(folder: Path) -> dict[str, object]:
    """Check what the engine reads beside the weights; return the config."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"]
    if "quantization" in config:
        assert config["quantization"] == config["quantization_config"]
        layers = [value for value in config["quantization"].values() if isinstance(value, dict)]
        assert all(layer.keys() >= {"group_size", "bits"} for layer in [config["quantization"], *layers])
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    files = {name: mx.load(str(folder / name)).keys() for name in set(index.values())}
    assert index == {tensor: name for name, tensors in files.items() for tensor in tensors}
    assert {path.name for path in folder.glob("*.safetensors")} == files.keys()
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    return config


def answer(folder: Path, question: str, max_tokens: int) -> str:
    """What the engine answers, greedy."""
    model, tokenizer = mlx_lm.load(str(folder), lazy=False)
    assert tokenizer.chat_template, "LM Studio asks for one"
    ends = [tokenizer.encode(text, add_special_tokens=False) for text in END_TOKENS]
    stop_ids = set(tokenizer.eos_token_ids) | {ids[0] for ids in ends if len(ids) == 1}
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    generator = BatchGenerator(model, max_tokens=max_tokens, stop_tokens=[[token_id] for token_id in stop_ids])
    generator.insert([prompt])
    ids: list[int] = []
    while responses := generator.next_generated():
        ids += [response.token for response in responses if response.finish_reason != "stop"]
    return tokenizer.decode(ids)


def test_fuse_into_the_folder_of_models(mlx_dpo: Cli, tmp_path: Path) -> None:
    make_adapter(MODEL, tmp_path / "run", rank=2)
    models = tmp_path / ".lmstudio" / "models"
    folder = models / "me" / "polite"
    ran = mlx_dpo("fuse", "--adapter-path", tmp_path / "run", "--bits", "8", "--save-path", folder)
    assert ran.code == 0 and listed(models) == ["me/polite"]
    config = check_folder(folder)
    assert config["quantization"]["bits"] == 4 and "vision_config" not in config  # type: ignore[index]
    flags = ("--adapter-path", tmp_path / "run", "--max-tokens", 12, "--prompt", "Hello", "--json")
    (row,) = json.loads(mlx_dpo("compare", *flags).out)["answers"]
    (fused,) = json.loads(mlx_dpo("compare", "--model", folder, *flags).out)["answers"]
    assert answer(folder, "Hello", 12).strip() == fused["base"] != row["base"]


def test_the_text_model_of_a_vision_model_is_listed_as_one(tmp_path: Path) -> None:
    """Its vision tower is not loaded by mlx-lm, so the engine must not look for one."""
    model = make_model(tmp_path / "model", "gemma3", {"group_size": 32, "bits": 4}, tokenizer=CHECKPOINT)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vision_config": {"hidden_size": 16}}))
    make_adapter(model, tmp_path / "run")
    folder = fuse_adapter(str(model), tmp_path / "run", tmp_path / "models" / "me" / "vision", bits="none").path
    assert "vision_config" not in check_folder(folder)
    assert isinstance(answer(folder, "Hello", 4), str)


def test_shards_have_the_names_of_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_dpo.export.fuse.model_writer.SHARD_BYTES", 4096)
    write_shards(tmp_path, ((f"layer.{i}.weight", mx.ones((16, 32))) for i in range(5)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    check_folder(tmp_path)
    assert len(list(tmp_path.glob("model-0000?-of-00003.safetensors"))) == 3
