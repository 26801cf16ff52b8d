"""How many bits each layer of a fused model gets: as few as keep the margin, more where it is most sensitive.

What rounding does to a block is measured once, at the base's bits and with all else unrounded: the mean squared change
of the pairs' margins. With more bits it is taken to fall as the squared error of the block's weights does, which costs
no run of the model. Blocks then climb from the base's bits towards float, each step the one that takes away the most
error for the bytes it adds; and of the plans on that climb the smallest that keeps the margin is found by halving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

import mlx.nn as nn

from mlx_dpo.adapters.merging import FLOAT_PRECISION, Precision, layer_precision, rounding_error, weight_bytes
from mlx_dpo.adapters.qa_lora import is_qa_lora
from mlx_dpo.forward.network import block_prefix

PrecisionPlan = dict[str, Precision]  # by the name of the adapted layer
SUPPORTED_BITS = (4, 5, 6, 8)


@dataclass(frozen=True)
class BitOption:
    """A block at one of its precisions.

    Attributes:
        error: of its weights, squared and relative, the mean over its layers.
        bytes: of its weights.
    """

    plan: PrecisionPlan
    relative_error: float
    size_bytes: float


def precision_options(module: nn.Module) -> list[Precision]:
    """Those that an adapted layer may be fused at, smallest first; on the grid the base's own loses nothing."""
    base = layer_precision(module)
    if base.bits is None or is_qa_lora(module):
        return [base]
    return [base, *(base.with_bits(bits) for bits in SUPPORTED_BITS if bits > base.bits), FLOAT_PRECISION]


def group_layers_by_block(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of `adapted_layers`, those of a block together."""
    return [list(names) for _, names in groupby(layers, key=block_prefix)]


def uniform_plan(layers: Mapping[str, nn.Module], option_index: int) -> PrecisionPlan:
    """All layers at their precision of that number, or at their last."""
    return {
        name: (choice := precision_options(module))[min(option_index, len(choice) - 1)]
        for name, module in layers.items()
    }


def greedy_upgrade(
    layers: Mapping[str, nn.Module], measure_sensitivity: Callable[[list[str]], float]
) -> list[PrecisionPlan]:
    """Plans from the smallest, all layers at the base's precision, to the largest.

    sensitivity: the squared change of margins that rounding a block's layers to the base's precision brings; it is
        asked for where there is a choice.
    """
    plans = [uniform_plan(layers, 0)]
    blocks = [{name: layers[name] for name in block} for block in group_layers_by_block(layers)]
    blocks = [block for block in blocks if any(len(precision_options(module)) > 1 for module in block.values())]
    steps: list[tuple[float, PrecisionPlan]] = []
    for block in blocks:
        rungs = _convex_hull(_block_options(block))
        weight = measure_sensitivity(list(block)) / max(rungs[0].relative_error, 1e-30)
        for lower, upper in pairwise(rungs):
            gain = weight * (lower.relative_error - upper.relative_error) / (upper.size_bytes - lower.size_bytes)
            steps.append((gain, upper.plan))
    for _, plan in sorted(
        steps, key=lambda step: -step[0]
    ):  # on a hull gains fall, so a block's steps keep their order
        plans.append({**plans[-1], **plan})
    return plans


def smallest_sufficient_plan(
    plans: list[PrecisionPlan], is_sufficient: Callable[[PrecisionPlan], bool]
) -> PrecisionPlan:
    """The first plan that keeps the margin, as if later ones kept no less than earlier; the last, if none does."""
    fails, good = -1, len(plans) - 1
    while good - fails > 1:
        middle = 0 if fails < 0 else (fails + good) // 2  # the base's own size first: at times it is enough
        fails, good = (fails, middle) if is_sufficient(plans[middle]) else (middle, good)
    return plans[good]


def _block_options(block: Mapping[str, nn.Module]) -> list[BitOption]:
    highest = max(len(precision_options(module)) for module in block.values())
    rungs = []
    for height in range(highest):
        plan = uniform_plan(block, height)
        errors = [rounding_error(module, plan[name]) for name, module in block.items()]
        size = sum(weight_bytes(module, plan[name]) for name, module in block.items())
        rungs.append(BitOption(plan, sum(errors) / len(errors), size))
    return rungs


def _convex_hull(rungs: list[BitOption]) -> list[BitOption]:
    """From each rung to that of the steepest fall in error a byte. 5 bits are at times worse than the base's own 4."""
    kept = [rungs[0]]
    while above := [
        rung
        for rung in rungs
        if rung.size_bytes > kept[-1].size_bytes and rung.relative_error < kept[-1].relative_error
    ]:
        here = kept[-1]
        kept.append(
            max(
                above,
                key=lambda rung: (here.relative_error - rung.relative_error) / (rung.size_bytes - here.size_bytes),
            )
        )
    return kept
