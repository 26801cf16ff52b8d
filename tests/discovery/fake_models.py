"""Folders of models as the Hub cache and LM Studio lay them out: configs of real families, and empty weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUANTIZED = {"bits": 4, "group_size": 32}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A tiny config of a family."""
    name = {"bert": "BertModel", "whisper": "WhisperForConditionalGeneration"}.get(model_type, "AnyForCausalLM")
    return {
        "model_type": model_type,
        "architectures": [name],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": 320,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **changes,
    }


def model_files(model_config: dict[str, Any], *, shards: int = 1, present: int | None = None) -> dict[str, Any]:
    """The files of a model by name: JSON values, or a number of zero bytes. Some of its shards may be missing."""
    files: dict[str, Any] = {"config.json": model_config, "tokenizer_config.json": {}}
    if shards == 1:
        return files | ({"model.safetensors": 1000} if present != 0 else {})
    names = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    index = {"weight_map": {f"model.layers.{i}.w": name for i, name in enumerate(names)}}
    return files | {"model.safetensors.index.json": index} | dict.fromkeys(names[:present], 1000)


def write_model(folder: Path, files: dict[str, Any]) -> Path:
    """Write a folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = bytes(content) if isinstance(content, int) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder


def write_hub_model(cache: Path, repo_id: str, files: dict[str, Any], repo_type: str = "model") -> Path:
    """Put a repository into huggingface_hub's cache, its files as links to blobs; returns the snapshot."""
    repo = cache / f"{repo_type}s--{repo_id.replace('/', '--')}"
    write_model(repo / "blobs", {f"blob-{name}": content for name, content in files.items()})
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).symlink_to(Path("../../blobs") / f"blob-{name}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


@dataclass
class Machine:
    """A home folder with a Hub cache and a folder of LM Studio, both empty."""

    home: Path
    hub: Path
    lm_studio: Path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The home of this process and of those that it starts; the working folder is beside it, and empty."""
    from huggingface_hub import constants

    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    hub = home / "hub"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(here)
    return Machine(home, hub, home / ".lmstudio" / "models")
