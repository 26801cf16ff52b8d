"""Versions and digests that determine a run's results; they are compared when it is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN

# The keys are in progress.json and in messages.
MODEL_KEY = "the model, or the adapter it starts from"
DATA_KEYS = {TRAIN: "the rows to train on", HELD_OUT: "the held-out rows"}
ROLLOUTS_KEY = "the prompts, or the judge"
PACKAGES = ("mlx", "mlx-lm", "mlx-dpo")


def compute_provenance(
    policy_fingerprint: str, digests: Mapping[str, str], rollouts_digest: str | None = None
) -> dict[str, str]:
    """Return the versions and digests that determine a run's results together with its settings, by what they are of.

    Args:
        policy_fingerprint: fingerprint of the policy at the start of the run.
        digests: digests of the examples, by example set.
        rollouts_digest: of an on-policy run, the digest of prompts and judge.
    """
    packages = {name: version(name) for name in PACKAGES}
    data = {DATA_KEYS[name]: text for name, text in digests.items()}
    rollouts = {} if rollouts_digest is None else {ROLLOUTS_KEY: rollouts_digest}
    return {**packages, MODEL_KEY: policy_fingerprint, **data, **rollouts}


def provenance_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe the differences between two results of `compute_provenance`.

    Args:
        before: that of the checkpoint.
        now: that of this process.
    """
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    packages = [name for name in changed if name in PACKAGES]
    if packages and MODEL_KEY in changed:  # a fingerprint includes the versions
        changed.remove(MODEL_KEY)
    return [
        f"{name} was {before.get(name)} and is {now.get(name)}" if name in packages else f"{name} changed"
        for name in changed
    ]


def changed_settings(before: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """Describe the changed settings, among those that affect results.

    Args:
        before: a checkpoint's config.
        now: the config to resume with.
    """
    free = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["free"]}
    return [
        f"{name} was {before[name]!r} and is {value!r}"
        for name, value in now.to_mapping().items()
        if name in before and name not in free and before[name] != value
    ]
