"""Which layers get more bits, and how few are enough."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.lora import LoRALinear

from mlx_dpo.adapters.merging import FLOAT_PRECISION, Precision, weight_bytes
from mlx_dpo.export.fuse.bit_search import (
    BitOption,
    PrecisionPlan,
    _convex_hull,
    greedy_upgrade,
    group_layers_by_block,
    precision_options,
    smallest_sufficient_plan,
    uniform_plan,
)


def layers(bits: int | None = 4) -> dict[str, nn.Module]:
    mx.random.seed(0)
    adapted = {}
    for name in ("layers.0.q", "layers.0.v", "layers.1.q"):
        linear = nn.Linear(128, 64)
        layer = LoRALinear.from_base(linear.to_quantized(32, bits) if bits else linear, r=4)
        layer.lora_b = 0.01 * mx.random.normal(layer.lora_b.shape)
        adapted[name] = layer
    return adapted


def test_a_ladder_begins_at_the_base() -> None:
    assert [p.bits for p in precision_options(layers(4)["layers.0.q"])] == [4, 5, 6, 8, None]
    assert [p.bits for p in precision_options(layers(6)["layers.0.q"])] == [6, 8, None]
    assert precision_options(layers(None)["layers.0.q"]) == [FLOAT_PRECISION]


def test_the_sensitive_block_climbs_first() -> None:
    measured_blocks = []

    def sensitivity(block: list[str]) -> float:
        measured_blocks.append(block)
        return 100.0 if "layers.1.q" in block else 1.0

    adapted = layers()
    plans = greedy_upgrade(adapted, sensitivity)
    assert measured_blocks == group_layers_by_block(adapted) == [["layers.0.q", "layers.0.v"], ["layers.1.q"]]
    assert plans[0] == uniform_plan(adapted, 0) == dict.fromkeys(adapted, Precision(4, 32))
    assert plans[-1] == dict.fromkeys(adapted, FLOAT_PRECISION)
    assert plans[1]["layers.1.q"] != plans[0]["layers.1.q"] and plans[1]["layers.0.q"] == plans[0]["layers.0.q"]
    sizes = [sum(weight_bytes(adapted[name], precision) for name, precision in plan.items()) for plan in plans]
    assert sizes == sorted(set(sizes))
    assert all(plan["layers.0.q"] == plan["layers.0.v"] for plan in plans)  # a block climbs as one


def test_nothing_is_measured_where_there_is_no_choice() -> None:
    adapted = layers(None)
    assert greedy_upgrade(adapted, lambda block: pytest.fail("asked")) == [dict.fromkeys(adapted, FLOAT_PRECISION)]


def test_a_rung_that_is_worse_than_a_smaller_one_is_left_out() -> None:
    rungs = [BitOption({}, error, size) for error, size in [(1.0, 4), (1.4, 5), (0.4, 6), (0.3, 7), (0.0, 8)]]
    assert [rung.size_bytes for rung in _convex_hull(rungs)] == [4, 6, 8]
    rungs[-1] = BitOption({}, 0.25, 8)
    assert [rung.size_bytes for rung in _convex_hull(rungs)] == [4, 6, 7, 8]


@pytest.mark.parametrize("first_good", [0, 1, 5, 19, 20])
def test_the_smallest_that_keeps_it_is_found_in_few_trials(first_good: int) -> None:
    plans: list[PrecisionPlan] = [{"": Precision(i)} for i in range(20)]
    tried = []

    def keeps(plan: PrecisionPlan) -> bool:
        tried.append(plan)
        return (plan[""].bits or 0) >= first_good

    assert smallest_sufficient_plan(plans, keeps) == plans[min(first_good, 19)]
    assert len(tried) <= 6
