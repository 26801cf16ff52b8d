"""What a run's numbers follow from, so that a run is not resumed with something else unnoticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN

# The keys stand in progress.json, and in messages.
MODEL_KEY = "the model, or the adapter it starts from"
DATA_KEYS = {TRAIN: "the rows to train on", HELD_OUT: "the held-out rows"}
PACKAGES = ("mlx", "mlx-lm", "mlx-dpo")


def compute_provenance(policy_fingerprint: str, digests: Mapping[str, str]) -> dict[str, str]:
    """Return versions and digests of what the numbers follow from beside the settings, by what they are of.

    Args:
        policy_fingerprint: of the policy that the run starts from.
        digests: of the examples, by example set.
    """
    packages = {name: version(name) for name in PACKAGES}
    return {**packages, MODEL_KEY: policy_fingerprint, **{DATA_KEYS[name]: text for name, text in digests.items()}}


def provenance_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words what differs between two results of `compute_provenance`."""
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    packages = [name for name in changed if name in PACKAGES]
    if packages and MODEL_KEY in changed:  # a fingerprint includes the versions
        changed.remove(MODEL_KEY)
    return [
        f"{name} was {before.get(name)} and is {now.get(name)}" if name in packages else f"{name} changed"
        for name in changed
    ]


def changed_settings(before: Mapping[str, Any], now: TrainConfig) -> list[str]:
    """Return in words which settings differ, of those that the numbers follow from.

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
