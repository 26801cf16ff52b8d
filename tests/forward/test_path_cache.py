"""How a model can be run is found out once; what is on disk is not used for another model, or where it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward import model_digest, path_cache
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.model_digest import tensor_digests
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.path_cache import PathCache, RunnablePath, list_path_files
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.training.test_run import config


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def adapted(adapter: str | None = None, keys: tuple[str, ...] = ("self_attn.q_proj",), rank: int = 4) -> nn.Module:
    model, _ = mlx_lm.load(str(CHECKPOINT))
    if adapter is None:
        attach_adapter(model, AdapterSpec("lora", -1, rank=rank, keys=keys))
    else:
        load_adapter(model, adapter)
    return model


def passes(model: nn.Module, **options: Any) -> tuple[Network, int]:
    """The network, and how many forward passes it took to choose it."""
    lines: list[str] = []
    network = Network.from_model(model, on_progress=lines.append, **{"use_cache": True, **options})
    assert all(line.startswith("Checking how the model can be run: forward pass ") for line in lines)
    return network, len(lines)


def key(model: nn.Module) -> str:
    return PathCache(model, tensor_digests(model, {})).key


def test_the_second_start_tries_nothing() -> None:
    first, count = passes(adapted())
    assert count and first.sharing is PromptSharing.ANY_PROMPTS
    for rank in (4, 8):  # a fresh adapter changes nothing
        network, again = passes(adapted(rank=rank))
        assert again == 0
        assert (network.sharing, network.head_split is None) == (first.sharing, first.head_split is None)


def test_a_kept_choice_is_the_one_that_is_used() -> None:
    model = adapted()
    cache = PathCache(model, tensor_digests(model, {}))
    cache.write(RunnablePath("ONE_PROMPT", True))
    assert passes(model)[0].sharing is PromptSharing.ONE_PROMPT
    cache.write(RunnablePath("NONE", False))
    network, _ = passes(model)
    assert network.sharing is PromptSharing.NONE and network.head_split is None


def test_what_no_way_is_called_is_found_out_again() -> None:
    model = adapted()
    cache = PathCache(model, tensor_digests(model, {}))
    cache.write(RunnablePath("SOME_PROMPTS", True))
    assert passes(model)[1] > 0 and passes(model)[1] == 0


def test_a_model_in_memory_is_tried_each_time() -> None:
    model = adapted()
    assert passes(model, use_cache=False)[1] > 0 and passes(model, use_cache=False)[1] > 0
    assert list_path_files() == []


def one_weight(model: nn.Module) -> nn.Module:
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = weight + mx.eye(*weight.shape) * 1e-3
    return model


def test_the_key_is_of_everything_that_the_choice_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key(adapted()),
        key(one_weight(adapted())),
        key(adapted(keys=("self_attn.v_proj",))),
        key(adapted(str(TRL / "adapter"))),
        key(mlx_lm.load(str(CHECKPOINT))[0]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(model_digest, "version", lambda name: f"{name} 99")
        keys.append(key(adapted()))
    with monkeypatch.context() as patch:
        digest = path_cache._source_digest
        patch.setattr(path_cache, "_source_digest", lambda name: "changed" if "qwen3" in name else digest(name))
        keys.append(key(adapted()))
    with monkeypatch.context() as patch:
        patch.setattr(path_cache, "own_code_digest", lambda: "changed")
        keys.append(key(adapted()))
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: "another")
        keys.append(key(adapted()))
    assert len(set(keys)) == len(keys)
    assert key(adapted()) == keys[0]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_damaged_file_is_not_used_and_is_written_again() -> None:
    model = adapted()
    passes(model)
    (file,) = list_path_files()
    content = file.read_bytes()
    cache = PathCache(model, tensor_digests(model, {}))
    assert cache.path == file
    known = cache.read()
    assert known == RunnablePath("ANY_PROMPTS", True)
    damaged: list[Callable[[], object]] = [
        *(lambda at=at: file.write_bytes(flipped(content, at)) for at in range(len(content) - 1)),
        *(lambda at=at: file.write_bytes(content[:at]) for at in range(len(content) - 1)),
        *(lambda text=text: file.write_bytes(text) for text in (b"[]", b"null", b"\xff\xfe", b"{}", b"1")),
    ]
    for damage in damaged:
        damage()
        assert cache.read() is None, file.read_bytes()
    assert passes(model)[1] > 0 and file.read_bytes() == content
    other = adapted(keys=("self_attn.v_proj",))  # whose file is another's
    other_cache = PathCache(other, tensor_digests(other, {}))
    other_cache.path.write_bytes(content)
    assert other_cache.read() is None


def test_a_folder_that_cannot_be_written_to_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    network, count = passes(adapted())
    assert count and network.sharing is PromptSharing.ANY_PROMPTS


def test_known_digests_change_no_fingerprint() -> None:
    for model in (adapted(), adapted(str(TRL / "adapter"))):
        network, _ = passes(model)
        assert network.frozen_digests
        frozen = set(dict(tree_flatten(model.parameters()))) - set(dict(tree_flatten(model.trainable_parameters())))
        assert set(network.frozen_digests) == frozen
        assert fingerprint(network) == fingerprint(Network.from_model(model))


def test_commands_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(tmp_path / "first"))
    evaluate(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS)), adapter_path=TRL / "adapter")

    def fail(*arguments: object) -> Network:
        raise AssertionError("the model is tried again")

    monkeypatch.setattr(Network, "_first_agreeing", fail)
    train(config(tmp_path / "second", beta=0.3))
    evaluate(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS)), adapter_path=TRL / "adapter")
