"""The prompt once and the head by chunks, against the plain way: one batch, full logits, all in one trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.chat_encoding import TokenIds
from mlx_dpo.data.collation import collate_sequences, collate_shared_prompts
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward import attention
from mlx_dpo.forward import network as network_module
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.training.run_planner import estimate_run
from tests.forward.test_architectures import FAMILIES, QUANTIZATIONS, make_model
from tests.training.test_run import config

ONE_PROMPT = {"gemma2"}  # their attention takes no mask of its own for each sequence


def ids(rng: random.Random, length: int) -> TokenIds:
    return tuple(rng.randrange(3, 300) for _ in range(length))


def batch_of(prompts: list[TokenIds], seed: int) -> MicroBatch:
    """Two completions a prompt, from one token to 24."""
    rng = random.Random(seed)
    lengths = [1, 12, 3, 24, 8, 2, 17, 5][: 2 * len(prompts)]
    return MicroBatch((), tuple((p, ids(rng, n)) for p, n in zip(prompts * 2, lengths, strict=True)))


def adapted(folder: Path, family: str, bits: str, keys: tuple[str, ...] | None = None) -> nn.Module:
    model, _ = mlx_lm.load(str(make_model(folder / "model", family, QUANTIZATIONS[bits])))
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, keys=keys))
    mx.random.seed(1)
    trained = tree_flatten(model.trainable_parameters())
    model.update(tree_unflatten([(name, 0.05 * mx.random.normal(v.shape)) for name, v in trained]))
    return model.train()


def plainly(model: nn.Module, batch: MicroBatch, weights: np.ndarray) -> tuple[np.ndarray, dict[str, mx.array]]:
    """Sequence log-probs, and the gradient of their weighted sum."""
    whole = collate_sequences(batch.sequences)

    def weighted() -> tuple[mx.array, mx.array]:
        logits = model(mx.array(whole.inputs)).astype(mx.float32)
        logps = nn.losses.cross_entropy(logits, mx.array(whole.targets))
        sums = -mx.where(mx.array(whole.completion_mask), logps, 0).sum(axis=1)
        return (sums * mx.array(weights)).sum(), sums

    (_, sums), gradient = nn.value_and_grad(model, weighted)()
    return np.array(sums), dict(tree_flatten(gradient))


@pytest.mark.parametrize("share", [0, 0.25, 0.75, 1], ids=["", "feed-forward", "block", "all"])
@pytest.mark.parametrize("bits", ["float32", "4bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_the_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, bits: str, share: float
) -> None:
    monkeypatch.setattr(network_module, "head_chunk_tokens", lambda *sizes: 7)  # seven rows of logits at a time
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    model = adapted(tmp_path, family, bits)
    network = Network.from_model(model)
    assert network.head_split is not None
    assert network.sharing is (PromptSharing.ONE_PROMPT if family in ONE_PROMPT else PromptSharing.ANY_PROMPTS)
    rng = random.Random(0)
    prompts = [ids(rng, n) for n in (19, 4, 1, 30)]
    for group in [[p] for p in prompts] if network.sharing is PromptSharing.ONE_PROMPT else [prompts]:
        batch = batch_of(group, seed=2)
        weights = np.linspace(-1, 1, len(batch.sequences)).astype(np.float32)
        sums, gradient = plainly(model, batch, weights)
        trace = network.trace(batch, round(share * network.num_checkpointable))
        ours = dict(tree_flatten(trace.gradient(weights)))
        np.testing.assert_allclose(trace.logps.sums, sums, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(trace.logps.sums, network.logps(batch).sums)
        largest = max(mx.abs(g).max().item() for g in gradient.values())
        for name, g in gradient.items():
            np.testing.assert_allclose(np.array(ours[name]), np.array(g), atol=1e-5 * largest, err_msg=name)


def test_a_model_that_cannot_share_takes_the_plain_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tmp_path, "llama", "float32")
    call: Callable[..., mx.array] = type(model).__call__

    def without_cache(self: nn.Module, inputs: mx.array, cache: object = None) -> mx.array:
        return call(self, inputs)  # what it was given is forgotten, so sharing gives other numbers

    monkeypatch.setattr(type(model), "__call__", without_cache)
    network = Network.from_model(model)
    assert network.sharing is PromptSharing.NONE and network.head_split is not None
    batch = batch_of([(3, 5, 7, 9), (4, 6)], seed=1)
    weights = np.ones(4, np.float32)
    sums, gradient = plainly(model, batch, weights)
    np.testing.assert_allclose(network.logps(batch).sums, sums, rtol=1e-5)
    for name, g in tree_flatten(network.trace(batch).gradient(weights)):
        np.testing.assert_allclose(np.array(g), np.array(gradient[name]), atol=1e-5)


@pytest.mark.parametrize("key", ["lm_head", "model.embed_tokens"])
def test_an_adapted_head_gets_its_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setitem(FAMILIES, "llama", {"tie_word_embeddings": key != "lm_head"})
    model = adapted(tmp_path, "llama", "float32", keys=("self_attn.v_proj", key))
    network = Network.from_model(model)
    batch = batch_of([(3, 5, 7, 9), (4, 6)], seed=1)
    weights = np.linspace(-1, 1, 4).astype(np.float32)
    sums, gradient = plainly(model, batch, weights)
    assert any(key in name for name in gradient)
    np.testing.assert_allclose(network.logps(batch).sums, sums, rtol=1e-5)
    for name, g in tree_flatten(network.trace(batch).gradient(weights)):
        np.testing.assert_allclose(np.array(g), np.array(gradient[name]), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("share", [0, 1], ids=["", "all"])
def test_where_numpy_cannot_write_the_forward_pass_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    model, _ = mlx_lm.load(str(make_model(tmp_path / "model", "llama", QUANTIZATIONS["float32"])))
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, dropout=0.5))
    network = Network.from_model(model.train())
    batch, weights = batch_of([(3, 5, 7, 9), (4, 6)], seed=1), np.linspace(-1, 1, 4).astype(np.float32)

    def step() -> tuple[np.ndarray, dict[str, mx.array]]:
        mx.random.seed(5)
        trace = network.trace(batch, round(share * network.num_checkpointable))
        mx.random.normal((3,))  # a loss may draw numbers, too
        return trace.logps.sums, dict(tree_flatten(trace.gradient(weights)))

    sums, gradient = step()
    monkeypatch.setattr(network_module, "numpy_writes_through", lambda: False)
    repeated_sums, repeated = step()
    np.testing.assert_array_equal(repeated_sums, sums)
    for name, g in gradient.items():
        np.testing.assert_allclose(np.array(repeated[name]), np.array(g), rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_prompt_goes_through_once_and_little_is_padding() -> None:
    rng = random.Random(0)
    prompt = ids(rng, 100)
    forked = collate_shared_prompts([(prompt, ids(rng, 50)), (prompt, ids(rng, 200))])
    assert forked.prompts.shape == (1, 99)
    assert forked.num_tokens == 99 + 50 + 200


@pytest.mark.parametrize(("family", "most"), [("llama", 30), ("ministral3", 65), ("phi3small", 55)])
def test_few_tokens_decide_how_a_model_is_run(monkeypatch: pytest.MonkeyPatch, family: str, most: int) -> None:
    """On a slow backend each takes a second. ANY_PROMPTS, ONE_PROMPT, NONE."""
    from tests.forward.families import sharing, tiny

    model, tokens = tiny(family), 0
    embed, embedding = nn.Embedding.__call__, next(m for m in model.modules() if isinstance(m, nn.Embedding))

    def counted(self: nn.Embedding, ids: mx.array) -> mx.array:
        nonlocal tokens
        tokens += ids.size if self is embedding else 0
        return embed(self, ids)

    monkeypatch.setattr(nn.Embedding, "__call__", counted)
    assert Network.from_model(model).sharing is sharing(family)
    assert 0 < tokens <= most, tokens


def test_training_says_that_it_checks_the_model(tmp_path: Path) -> None:
    from mlx_dpo.training.listener import Listener

    class Prepared(Listener):
        texts: list[str] = []  # noqa: RUF012

        def on_preparing(self, text: str) -> None:
            self.texts.append(text)

    estimate_run(config(tmp_path / "run"), listener=Prepared())
    expected = ["Loading the model", "Checking how the model can be run", "Measuring the memory that the model needs"]
    assert [text for text in Prepared.texts if text in expected] == expected
