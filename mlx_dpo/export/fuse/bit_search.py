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

from mlx_dpo.adapters.merging import FLOAT, Precision, bytes_of, precision_of, rounding_error
from mlx_dpo.adapters.qa_lora import on_grid
from mlx_dpo.forward.network import block_of

Plan = dict[str, Precision]  # by the name of the adapted layer
BITS = (4, 5, 6, 8)


@dataclass(frozen=True)
class Rung:
    """A block at one of its precisions.

    Attributes:
        error: of its weights, squared and relative, the mean over its layers.
        bytes: of its weights.
    """

    plan: Plan
    error: float
    bytes: float


def precisions(module: nn.Module) -> list[Precision]:
    """Those that an adapted layer may be fused at, smallest first; on the grid the base's own loses nothing."""
    base = precision_of(module)
    if base.bits is None or on_grid(module):
        return [base]
    return [base, *(base.at(bits) for bits in BITS if bits > base.bits), FLOAT]


def blocks_of(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of `adapted_layers`, those of a block together."""
    return [list(names) for _, names in groupby(layers, key=block_of)]


def plan_at(layers: Mapping[str, nn.Module], rung: int) -> Plan:
    """All layers at their precision of that number, or at their last."""
    return {name: (choice := precisions(module))[min(rung, len(choice) - 1)] for name, module in layers.items()}


def climb(layers: Mapping[str, nn.Module], sensitivity: Callable[[list[str]], float]) -> list[Plan]:
    """Plans from the smallest, all layers at the base's precision, to the largest.

    sensitivity: the squared change of margins that rounding a block's layers to the base's precision brings; it is
        asked for where there is a choice.
    """
    plans = [plan_at(layers, 0)]
    blocks = [{name: layers[name] for name in block} for block in blocks_of(layers)]
    blocks = [block for block in blocks if any(len(precisions(module)) > 1 for module in block.values())]
    steps: list[tuple[float, Plan]] = []
    for block in blocks:
        rungs = _hull(_rungs(block))
        weight = sensitivity(list(block)) / max(rungs[0].error, 1e-30)
        for lower, upper in pairwise(rungs):
            gain = weight * (lower.error - upper.error) / (upper.bytes - lower.bytes)
            steps.append((gain, upper.plan))
    for _, plan in sorted(
        steps, key=lambda step: -step[0]
    ):  # on a hull gains fall, so a block's steps keep their order
        plans.append({**plans[-1], **plan})
    return plans


def smallest(plans: list[Plan], keeps: Callable[[Plan], bool]) -> Plan:
    """The first plan that keeps the margin, as if later ones kept no less than earlier; the last, if none does."""
    fails, good = -1, len(plans) - 1
    while good - fails > 1:
        middle = 0 if fails < 0 else (fails + good) // 2  # the base's own size first: at times it is enough
        fails, good = (fails, middle) if keeps(plans[middle]) else (middle, good)
    return plans[good]


def _rungs(block: Mapping[str, nn.Module]) -> list[Rung]:
    highest = max(len(precisions(module)) for module in block.values())
    rungs = []
    for height in range(highest):
        plan = plan_at(block, height)
        errors = [rounding_error(module, plan[name]) for name, module in block.items()]
        size = sum(bytes_of(module, plan[name]) for name, module in block.items())
        rungs.append(Rung(plan, sum(errors) / len(errors), size))
    return rungs


def _hull(rungs: list[Rung]) -> list[Rung]:
    """From each rung to that of the steepest fall in error a byte. 5 bits are at times worse than the base's own 4."""
    kept = [rungs[0]]
    while above := [rung for rung in rungs if rung.bytes > kept[-1].bytes and rung.error < kept[-1].error]:
        here = kept[-1]
        kept.append(max(above, key=lambda rung: (here.error - rung.error) / (rung.bytes - here.bytes)))
    return kept
