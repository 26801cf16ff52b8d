"""Choose the bits of each layer of a fused model: as few as keep the margin, more for sensitive blocks.

1. For each block, measure once how rounding it to the base's bits, with everything else unrounded, changes the pairs'
   reward margins (mean squared change). With more bits, this change is assumed to fall in proportion to the squared
   error of the block's weights, which needs no further forward pass.
2. Starting from the base's bits, upgrade blocks towards float greedily, by the reduction in error per added byte.
3. Find the smallest plan on this path that keeps the margin by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import mlx.nn as nn

from mlx_dpo.adapters.merging import FLOAT_PRECISION, Precision, layer_precision, rounding_error, weight_bytes
from mlx_dpo.adapters.qa_lora import is_qa_lora
from mlx_dpo.utils.tensor_names import block_prefix

PrecisionPlan = dict[str, Precision]  # by name of the adapted layer
SUPPORTED_BITS = (4, 5, 6, 8)


@dataclass(frozen=True)
class BitOption:
    """A precision that the layers of a block may have.

    Attributes:
        plan: the precision of each layer.
        relative_error: squared error of the weights relative to their squares, the mean over layers.
        size_bytes: bytes of the weights.
    """

    plan: PrecisionPlan
    relative_error: float
    size_bytes: float


def precision_options(module: nn.Module) -> list[Precision]:
    """The precisions that an adapted layer may be fused at, smallest first.

    For QA-LoRA this is the base's precision alone, at which nothing is lost.
    """
    base = layer_precision(module)
    if base.bits is None or is_qa_lora(module):
        return [base]
    return [base, *(base.with_bits(bits) for bits in SUPPORTED_BITS if bits > base.bits), FLOAT_PRECISION]


def has_choice_of_bits(layers: Mapping[str, nn.Module]) -> bool:
    """Whether any of the adapted layers may be fused at more than one precision."""
    return any(len(precision_options(module)) > 1 for module in layers.values())


def group_layers_by_block(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """Group the names of `adapted_layers` by transformer block."""
    return [list(names) for _, names in groupby(layers, key=block_prefix)]


def uniform_plan(layers: Mapping[str, nn.Module], option_index: int) -> PrecisionPlan:
    """A plan with the same choice for all layers.

    Args:
        layers: adapted layers by name.
        option_index: index into each layer's `precision_options`; layers with fewer options get their last one.
    """
    options = {name: precision_options(module) for name, module in layers.items()}
    return {name: choices[min(option_index, len(choices) - 1)] for name, choices in options.items()}


def greedy_upgrade(
    layers: Mapping[str, nn.Module], measure_sensitivity: Callable[[list[str]], float]
) -> list[PrecisionPlan]:
    """Plans from the smallest, with all layers at the base's precision, to the largest.

    Args:
        layers: adapted layers by name, in the model's order.
        measure_sensitivity: takes the names of a block's layers; returns the mean squared change of margins when they
            are rounded to the base's precision. Called once for each block that has a choice.
    """
    plans = [uniform_plan(layers, 0)]
    upgrades: list[tuple[float, PrecisionPlan]] = []
    for names in group_layers_by_block(layers):
        block = {name: layers[name] for name in names}
        if not has_choice_of_bits(block):
            continue
        options = _convex_hull(_block_options(block))
        weight = measure_sensitivity(names) / max(options[0].relative_error, 1e-30)
        for lower, upper in pairwise(options):
            upgrades.append((weight * _error_reduction_per_byte(lower, upper), upper.plan))
    # The gains of a block fall along its convex hull, so sorting keeps its upgrades in order.
    for _, upgrade in sorted(upgrades, key=lambda entry: -entry[0]):
        plans.append(plans[-1] | upgrade)
    return plans


def smallest_sufficient_plan(
    plans: list[PrecisionPlan], is_sufficient: Callable[[PrecisionPlan], bool]
) -> PrecisionPlan:
    """Find the first plan that is sufficient by bisection, assuming that all later ones are; else the last plan."""
    insufficient, sufficient = -1, len(plans) - 1
    while sufficient - insufficient > 1:
        # The smallest plan first: it is often sufficient.
        middle = 0 if insufficient < 0 else (insufficient + sufficient) // 2
        if is_sufficient(plans[middle]):
            sufficient = middle
        else:
            insufficient = middle
    return plans[sufficient]


def _block_options(block: Mapping[str, nn.Module]) -> list[BitOption]:
    options = []
    for index in range(max(len(precision_options(module)) for module in block.values())):
        plan = uniform_plan(block, index)
        errors = [rounding_error(module, plan[name]) for name, module in block.items()]
        size = sum(weight_bytes(module, plan[name]) for name, module in block.items())
        options.append(BitOption(plan, sum(errors) / len(errors), size))
    return options


def _error_reduction_per_byte(smaller: BitOption, larger: BitOption) -> float:
    return (smaller.relative_error - larger.relative_error) / (larger.size_bytes - smaller.size_bytes)


def _convex_hull(options: list[BitOption]) -> list[BitOption]:
    """The options on the lower convex hull of error over size.

    This drops options that are worse than a smaller one, as 5 bits sometimes are than the base's own 4.
    """
    hull, better = [options[0]], options
    while True:
        last = hull[-1]
        better = [o for o in better if o.size_bytes > last.size_bytes and o.relative_error < last.relative_error]
        if not better:
            return hull
        hull.append(max(better, key=partial(_error_reduction_per_byte, last)))
