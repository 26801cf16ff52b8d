"""What dpo_and_ppo.py counts: multiply-adds as mlx's own graph has them, and costs at equal reward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import dpo_and_ppo
import pipeline_costs as costs
from compute_meter import KINDS, ComputeMeter
from model_products import ModelSize, Work, batch_work
from pipeline_cases import choose_pairs

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.demo import MODEL
from mlx_dpo.forward.activation_memory import synthetic_pair
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_network import RewardNetwork
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.training.on_policy import rollout_sampler

PRODUCTS = ("Matmul", "AddMM", "QuantizedMatmul")
CURVE = [{"step": step, "reward": reward} for step, reward in ((0, 0.4), (10, 0.6), (20, 0.55), (30, 0.9))]
STEPS = [
    {
        "step": step,
        "wall": 2.0 * step,
        "cpu": 1.0 * step,
        "tokens": dict.fromkeys(KINDS, 10 * step),
        "products": dict.fromkeys(KINDS, 100 * step),
    }
    for step in range(1, 41)
]


@pytest.fixture(scope="module")
def network() -> Network:
    model = load_model(str(MODEL)).model
    attach_adapter(model, AdapterSpec("lora", -1))
    return Network.from_model(model)


def graph_products(network: Network, function: Callable[[], Any]) -> int:
    """Multiply-adds of all products in the graph of what a function returns."""
    model, count = network.model, 0
    names, arrays = zip(*tree_flatten(model.parameters()), strict=True)

    def record(message: dict[str, Any]) -> None:
        nonlocal count
        if message["type"] == "primitive" and message["name"] in PRODUCTS:
            count += prod(message["outputs"][0][1]) * message["inputs"][0][1][-1]

    def call(*parameters: mx.array) -> Any:
        model.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        return function()

    mx.export_function(record, call, *arrays)
    model.update(tree_unflatten(list(zip(names, arrays, strict=True))))
    return count


@pytest.mark.parametrize("shape", [(30, 20), (1, 9)])
def test_products_are_those_of_the_graph(network: Network, shape: tuple[int, int]) -> None:
    batch, size = synthetic_pair(*shape), ModelSize.from_model(network.model)
    work = batch_work(network, batch)
    hidden = mx.zeros((work.head_tokens, 128))
    head = graph_products(network, lambda: network.logits(hidden))
    assert head == work.head_tokens * size.head
    forward = graph_products(network, lambda: network.lazy_hidden_states(batch))
    assert size.products(work, backward=False) == forward + head

    def both_passes() -> list[mx.array]:
        hidden, upstream, gradients = network.lazy_backward(batch)
        return [hidden, upstream, *(gradient for _, gradient in tree_flatten(gradients))]

    assert size.products(work, backward=True) == graph_products(network, both_passes) + 2 * head


def test_what_goes_through_a_model_is_counted_by_its_purpose(network: Network) -> None:
    batch, meter, tokenizer = synthetic_pair(6, 4), ComputeMeter(), load_tokenizer(str(MODEL))
    with meter.counting():
        network.logps(batch)  # before the first step
        assert meter.work["policy"] == Work()
        meter.on_run_start(None)  # type: ignore[arg-type]
        network.logps(batch)
        with meter.uncounted():
            network.logps(batch)
        network.trace(batch)
        params = SamplingParams(5, temperature=1.0)
        ((completion,),) = rollout_sampler.sample_completions(network.model, tokenizer, [[5, 6, 7, 8]], params)
    meter.on_step(1, {})
    work, count = batch_work(network, batch), len(completion.token_ids)
    assert (work.prompt_tokens, work.tokens, work.head_tokens) == (5, 8, 8)
    assert meter.work["policy"] == meter.work["update"] == work
    assert meter.work["sampling"] == Work(3, count, count, 9, 3 * count + count * (count + 1) // 2)
    assert meter.work["reference"] == meter.work["reward model"] == Work()
    assert meter.steps[0]["tokens"] == {**dict.fromkeys(KINDS, 0), "policy": 13, "update": 13, "sampling": 3 + count}
    assert Network.logps.__qualname__ == "Network.logps"  # as it was before


def test_a_reward_model_has_no_head_and_a_token_less_to_predict() -> None:
    model = load_model(str(MODEL)).model
    network = RewardNetwork.with_new_head(Network.from_model(model), 0)
    batch = MicroBatch((0,), (((5, 6, 7), (8, 9)),))
    assert batch_work(network, batch) == Work(2, 3, 0, 4, 3 * 5)


def test_the_first_step_that_reaches_a_level() -> None:
    assert costs.crossing(CURVE, 0.5) == pytest.approx(5)
    assert costs.crossing(CURVE, 0.3) == 0
    assert costs.crossing(CURVE, 0.725) == pytest.approx(25)
    assert costs.crossing(CURVE, 0.95) is None


def test_costs_grow_from_nothing_and_end_with_the_run() -> None:
    at = costs.costs_at(STEPS, 2.5)
    assert (at["wall"], at["cpu"], at["tokens/update"]) == (5, 2.5, 25)
    assert costs.total(at, "products") == 250 * len(KINDS)
    assert costs.tokens_by_kind(at) == {"generated": 25, "forward": 75, "forward+backward": 25}
    assert costs.costs_at(STEPS, 0)["cpu"] == 0
    assert costs.costs_at(STEPS, 99)["cpu"] == 40


def test_the_reward_models_training_is_part_of_rlhf() -> None:
    slow = [{**line, "step": line["step"] + 10, "kl": 0.1} for line in CURVE]
    fast = [{**line, "kl": 0.1} for line in CURVE]
    parts = {
        **{part: {"steps": STEPS} for part in ("dpo", "reward", "ppo")},
        **{"measure-dpo": {"checkpoints": fast}, "measure-ppo": {"checkpoints": slow}},
    }
    compared = costs.compare_at(0.725, parts)
    assert [compared[name]["cpu"] for name in ("dpo", "reward", "ppo", "rlhf")] == pytest.approx([25, 40, 35, 75])
    summary = dpo_and_ppo.summarize([parts, parts], 0.725)
    assert summary["saved"]["products"] == pytest.approx(1 - 25 / 75)
    assert summary["saved"]["products_without_reward_model"] == pytest.approx(1 - 25 / 35)
    assert "| | **saved by DPO** | | | | | | **67%** (67%, 67%) | 67% |" in dpo_and_ppo.cost_table([summary])
    missed = dpo_and_ppo.summarize([parts], 0.95)
    assert missed == {"level": 0.95, "seeds": 0, "of": 1}
    half = dpo_and_ppo.summarize([parts, {**parts, "measure-ppo": {"checkpoints": slow[:1]}}], 0.725)
    assert "**saved by DPO in 1 of 2 seeds** | | | | | | **67%** (67%)" in dpo_and_ppo.cost_table([half])[-1]
    assert "not reached by both" in dpo_and_ppo.cost_table([missed])[-1]


def test_counted_memory() -> None:
    counted = costs.resident_bytes(weights=100, adapter=1)
    assert counted["textbook"] == {"dpo": 500, "ppo": 1000}
    assert counted["copies"] == {"dpo": 204, "ppo": 409}
    assert counted["shared"] == {"dpo": 104, "ppo": 205}


def test_a_pair_is_the_best_and_the_worst_answer() -> None:
    answers = [["bb", "a", " ", "cccc"], ["x", "y"], [""]]
    pairs = choose_pairs(["p", "q", "r"], answers, lambda prompt, answer: len(answer))
    assert pairs == [{"prompt": "p", "chosen": "cccc", "rejected": "a"}]
