"""Nearly every model type of mlx-lm against mlx-lm's plain way of running it."""

from __future__ import annotations

import random

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError
from mlx_dpo.forward import attention, chunked_recurrence
from mlx_dpo.forward.network import Network, PromptSharing
from tests.forward.families import CONFIGS, KEYS, ONE_PROMPT, PLAIN, UNTRAINABLE, WINDOW, sharing, tiny
from tests.forward.test_network import batch_of, ids, plainly

TRAINABLE = [family for family in CONFIGS if family not in UNTRAINABLE or family in KEYS]
LENGTHS = {
    PromptSharing.ANY_PROMPTS: [(19, 4, 1, 30)],
    PromptSharing.ONE_PROMPT: [(30,), (1,)],
    PromptSharing.NONE: [(19, 4)],
}  # of prompts


def randomise(model: nn.Module) -> None:
    """Adapters as training leaves them: lora_b is not zero."""
    mx.random.seed(1)
    trained = tree_flatten(model.trainable_parameters())
    model.update(tree_unflatten([(name, 0.05 * mx.random.normal(v.shape)) for name, v in trained]))


@pytest.mark.parametrize("family", TRAINABLE)
def test_a_type_trains_and_shares_as_the_table_says(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    check_type(monkeypatch, family, (0.5,))


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAINABLE)
def test_a_type_trains_with_all_layers_kept_or_recomputed(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    check_type(monkeypatch, family, (0, 1))


def check_type(monkeypatch: pytest.MonkeyPatch, family: str, recomputed_shares: tuple[float, ...]) -> None:
    """Compare log-probs and gradients with mlx-lm's, with these shares of the layers recomputed."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    monkeypatch.setattr(chunked_recurrence, "CHUNK", 4)
    monkeypatch.setattr(chunked_recurrence, "SEGMENT", 8)
    model = tiny(family)
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, keys=KEYS.get(family)))
    randomise(model)
    network = Network.from_model(model.train())
    assert network.head_split is not None
    assert network.sharing is sharing(family)
    rng = random.Random(0)
    for lengths in LENGTHS[network.sharing]:
        assert max(lengths) > 2 * WINDOW or lengths == (1,)
        batch = batch_of([ids(rng, n) for n in lengths], seed=2)
        weights = np.linspace(-1, 1, len(batch.sequences)).astype(np.float32)
        sums, gradient = plainly(model, batch, weights)
        largest = max(mx.abs(g).max().item() for g in gradient.values())
        assert 0 < largest < np.inf, "mlx-lm's own gradient is not finite"
        for share in recomputed_shares:
            trace = network.trace(batch, int(share * network.num_checkpointable))
            ours = dict(tree_flatten(trace.gradient(weights)))
            np.testing.assert_allclose(trace.logps.sums, sums, atol=1e-5 * np.abs(sums).max())
            for name, g in gradient.items():
                np.testing.assert_allclose(np.array(ours[name]), np.array(g), atol=1e-5 * largest, err_msg=name)


def test_most_types_share_a_prompt() -> None:
    assert set(ONE_PROMPT) | set(PLAIN) <= set(TRAINABLE)
    assert sum(sharing(family) is not PromptSharing.NONE for family in TRAINABLE) >= 45


@pytest.mark.parametrize("family", UNTRAINABLE)
def test_mlx_lm_itself_cannot_train_these(family: str) -> None:
    said, _ = UNTRAINABLE[family]
    with pytest.raises((AttributeError, ValueError), match=said):
        train_by_mlx_lm(tiny(family))


def test_a_model_that_its_adapters_break_is_said_so() -> None:
    model = tiny("gemma3n")
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, keys=("altup.prediction_coefs",)))
    with pytest.raises(UserError, match="can't run this model as it is adapted"):
        Network.from_model(model)


def train_by_mlx_lm(model: nn.Module) -> None:
    """A gradient with LoRA on all layers that mlx-lm finds."""
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": 4, "scale": 4.0, "dropout": 0.0})
    if not tree_flatten(model.trainable_parameters()):
        raise ValueError("nothing to train")
    batch = batch_of([(3, 5, 4)], seed=2)
    _, gradient = plainly(model, batch, np.ones(len(batch.sequences), np.float32))
    mx.eval(gradient)
