"""What two pipelines cost to the same true reward, from what their parts have measured. Nothing is run here.

A part is what drive_pipeline.py has printed: `steps`, what was done after each optimizer step, and `size`. Checkpoints
are lines with `step` and `reward`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from compute_meter import KINDS
from model_products import ModelSize, Work

Lines = Sequence[Mapping[str, Any]]
Costs = dict[str, float]  # "tokens/...", "products/..." by purpose or kind, "wall", "cpu"

OPTIMIZER_COPIES = 3  # of what is trained: its gradient, and AdamW's two moments
FULL_BACKWARD = 3  # forward passes that a training step costs if the weights are trained too


def crossing(checkpoints: Lines, level: float) -> float | None:
    """The step at which the true reward reaches a level first, by linear interpolation; None if it never does."""
    before: Mapping[str, Any] | None = None
    for line in checkpoints:
        if line["reward"] >= level:
            if before is None:
                return float(line["step"])
            share = (level - before["reward"]) / (line["reward"] - before["reward"])
            return float(before["step"] + share * (line["step"] - before["step"]))
        before = line
    return None


def costs_at(steps: Lines, step: float) -> Costs:
    """What a run has cost up to a step, by linear interpolation; a run starts at no cost."""
    numbers = [0, *(line["step"] for line in steps)]

    def at(values: Sequence[float]) -> float:
        return float(np.interp(step, numbers, [0.0, *values]))

    costs = {name: at([line[name] for line in steps]) for name in ("wall", "cpu")}
    for group in ("tokens", "products"):
        for purpose in KINDS:
            costs[f"{group}/{purpose}"] = at([line[group][purpose] for line in steps])
    return costs


def total(costs: Costs, group: str) -> float:
    """The sum of a group's costs."""
    return sum(value for name, value in costs.items() if name.startswith(f"{group}/"))


def tokens_by_kind(costs: Costs) -> dict[str, float]:
    """Tokens that were generated, run forward, and run forward and backward; the first with their prompts."""
    sums = dict.fromkeys(KINDS.values(), 0.0)
    for purpose, kind in KINDS.items():
        sums[kind] += costs[f"tokens/{purpose}"]
    return sums


def add_costs(*parts: Costs) -> Costs:
    """The sum of several parts' costs."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def compare_at(level: float, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The costs of a seed's two pipelines to the same true reward.

    Args:
        level: the true reward.
        parts: figures of "dpo", "reward", "ppo", "measure-dpo" and "measure-ppo".

    Returns:
        `dpo`, `reward` (the reward model's training, all of it), `ppo` and `rlhf`, the sum of these two; None for what
        never reaches the level.
    """
    reached = {name: crossing(parts[f"measure-{name}"]["checkpoints"], level) for name in ("dpo", "ppo")}
    costs: dict[str, Any] = {
        name: None if step is None else costs_at(parts[name]["steps"], step) for name, step in reached.items()
    }
    costs["reward"] = costs_at(parts["reward"]["steps"], parts["reward"]["steps"][-1]["step"])
    costs["rlhf"] = None if costs["ppo"] is None else add_costs(costs["reward"], costs["ppo"])
    return {"level": level, "steps": reached, **costs}


def kl_at(checkpoints: Lines, step: float) -> float:
    """The KL at a step, by linear interpolation."""
    return float(np.interp(step, [line["step"] for line in checkpoints], [line["kl"] for line in checkpoints]))


def highest(checkpoints: Lines) -> Mapping[str, Any]:
    """The checkpoint with the highest true reward."""
    return max(checkpoints, key=lambda line: line["reward"])


def textbook_products(parts: Mapping[str, Any]) -> dict[str, int]:
    """Multiply-adds of the whole runs if no two models shared weights and all weights were trained.

    Reference, policy, critic and reward model are models of their own: the critic runs wherever the policy's log-probs
    are computed, and is trained in every update. A training step costs three forward passes.
    """

    def forward(part: str, purpose: str, head: bool = True) -> int:
        size = ModelSize(**{**parts[part]["size"], "lora": 0, "lora_last": 0, "lora_first": 0})
        work = Work(**parts[part]["work"][purpose])
        return size.products(work if head else Work(**{**vars(work), "head_tokens": 0}), backward=False)

    sampled = sum(forward("ppo", purpose) for purpose in ("sampling", "policy", "reference", "reward model"))
    critic = forward("ppo", "policy", head=False) + FULL_BACKWARD * forward("ppo", "update", head=False)
    return {
        "dpo": forward("dpo", "reference") + FULL_BACKWARD * forward("dpo", "update"),
        "reward": FULL_BACKWARD * forward("reward", "update", head=False),
        "ppo": sampled + critic + FULL_BACKWARD * forward("ppo", "update"),
    }


def resident_bytes(weights: int, adapter: int) -> dict[str, dict[str, int]]:
    """Bytes of weights and optimizer states that are in memory all the time, without activations and caches.

    Args:
        weights: bytes of a model.
        adapter: bytes of an adapter.

    Returns:
        By how it is done, those of DPO and of PPO: `textbook`, models of their own and all weights trained; `copies`,
        models of their own with adapters; `shared`, as it is done here, where policy, reference and critic are one
        model, and the reward model another.
    """
    trained, tuned = (1 + OPTIMIZER_COPIES) * weights, (1 + OPTIMIZER_COPIES) * adapter
    return {
        "textbook": {"dpo": trained + weights, "ppo": 2 * trained + 2 * weights},
        "copies": {"dpo": 2 * weights + tuned, "ppo": 4 * weights + 2 * tuned + adapter},
        "shared": {"dpo": weights + tuned, "ppo": 2 * weights + tuned + adapter},
    }
