"""Reward against KL: the best there is for a reward of 0 or 1, best-of-n, and methods at equal KL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
from bundled_task import interval

Point = dict[str, Any]
WIDEST_GAP = 0.4  # in KL, between points whose rewards are interpolated


def binary_kl(reward: float, base: float) -> float:
    """The least KL to a base policy of mean reward `base` at which a policy can have this mean reward, in nats.

    The reward is 0 or 1, and equally likely at every prompt. The least KL is that of the policy which keeps the base
    policy's probabilities among the good answers and among the bad ones.
    """
    return sum(p * log(p / q) for p, q in ((reward, base), (1 - reward, 1 - base)) if p > 0)


def optimal_curve(base: float, points: int = 101) -> list[tuple[float, float]]:
    """(KL, reward) of the best policies, from the base policy's reward to 1."""
    return [(binary_kl(float(reward), base), float(reward)) for reward in np.linspace(base, 1, points)]


def best_of_n_rewards(rewards: np.ndarray) -> dict[int, np.ndarray]:
    """Rewards of best-of-n by the reward itself, for n = 1, 2, 4, ...; each answer is used once for every n.

    Args:
        rewards: [prompts, answers].

    Returns:
        By n: [prompts] means over the groups of n answers.
    """
    prompts, answers = rewards.shape
    by_n, n = {}, 1
    while n <= answers:
        groups = rewards[:, : answers // n * n].reshape(prompts, -1, n)
        by_n[n] = groups.max(axis=2).mean(axis=1)
        n *= 2
    return by_n


def reward_at(curve: Iterable[tuple[float, float]], kl: float) -> float | None:
    """The reward of a run at a KL; None beyond its points, and in wide gaps.

    Between two points it is linear in the root of the KL, as the best policies' reward nearly is.
    """
    ordered = sorted(curve)
    for (kl_before, before), (kl_after, after) in pairwise(ordered):
        if kl_before <= kl <= kl_after <= kl_before + WIDEST_GAP:
            width = sqrt(kl_after) - sqrt(kl_before)
            share = (sqrt(kl) - sqrt(kl_before)) / width if width else 1.0
            return before + share * (after - before)
    return None


def run_key(point: Point) -> tuple[Any, ...]:
    """What the points of one run have in common."""
    return tuple(point.get(name) for name in ("method", "seed", "beta", "alpha", "kl_coef", "learning_rate"))


def curves_of(points: Sequence[Point], base: float) -> dict[tuple[Any, ...], list[tuple[float, float]]]:
    """(KL, reward) of every run, from the base policy on."""
    curves: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for point in points:
        curves.setdefault(run_key(point), [(0.0, base)]).append((point["kl"], point["reward"]))
    return curves


def rewards_at(points: Sequence[Point], base: float, kl: float) -> dict[str, dict[int, float]]:
    """By method and seed: the mean reward at a KL of those of its runs that reach it."""
    found: dict[str, dict[int, list[float]]] = {}
    for (method, seed, *_), curve in curves_of(points, base).items():
        reward = reward_at(curve, kl)
        if reward is not None:
            found.setdefault(method, {}).setdefault(seed, []).append(reward)
    return {method: {seed: float(np.mean(of)) for seed, of in seeds.items()} for method, seeds in found.items()}


def equal_kl_rows(points: Sequence[Point], base: float, kls: Sequence[float]) -> list[dict[str, Any]]:
    """Rewards at equal KL: a row for each method, for the difference of dpo and PPO, and for the optimum."""
    at = {kl: rewards_at(points, base, kl) for kl in kls}
    methods = list(dict.fromkeys(point["method"] for point in points))
    rows = [_row(method, {kl: list(at[kl].get(method, {}).values()) for kl in kls}) for method in methods]
    for other in ("ppo-true-reward", "ppo"):
        differences = {}
        for kl in kls:
            dpo, ppo = at[kl].get("dpo", {}), at[kl].get(other, {})
            differences[kl] = [dpo[seed] - ppo[seed] for seed in dpo if seed in ppo]
        rows.append(_row(f"dpo - {other}", differences))
    best = optimal_curve(base, 1001)
    return [*rows, _row("optimum", {kl: [r for r in [reward_at(best, kl)] if r is not None] for kl in kls})]


def _row(name: str, values: dict[float, list[float]]) -> dict[str, Any]:
    rewards: dict[str, Any] = {}
    for kl, of_seeds in values.items():
        mean, low, high = interval(of_seeds) if of_seeds else (0.0, 0.0, 0.0)
        has_interval = len(of_seeds) > 1
        cell = {"mean": mean, "interval": [low, high] if has_interval else [None, None], "seeds": len(of_seeds)}
        rewards[f"{kl:g}"] = cell if of_seeds else None
    return {"method": name, "rewards": rewards}
