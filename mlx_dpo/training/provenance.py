"""What a run's numbers follow from, so that going on with something else is noticed and named."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, ExampleSets

MODEL_KEY = "the model, or the adapter it starts from"
DATA_KEYS = {TRAIN: "the rows to train on", HELD_OUT: "the held-out rows"}
PACKAGES = ("mlx", "mlx-lm", "mlx-dpo")


def compute_provenance(policy_fingerprint: str, example_sets: ExampleSets) -> dict[str, str]:
    """Digests and versions by what they are of, for people; `policy` is the fingerprint of the starting policy."""
    rows = {DATA_KEYS[name]: one.examples.source.digest for name, one in example_sets.items()}
    return {**{name: version(name) for name in PACKAGES}, MODEL_KEY: policy_fingerprint, **rows}


def provenance_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What of two `made_of` is not the same, in words."""
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    packages = [name for name in changed if name in PACKAGES]
    if packages and MODEL_KEY in changed:  # a fingerprint has the versions in it
        changed.remove(MODEL_KEY)
    return [
        f"{name} was {before.get(name)} and is {now.get(name)}" if name in packages else f"{name} changed"
        for name in changed
    ]


def changed_settings(before: dict[str, Any], now: TrainConfig) -> list[str]:
    """Knobs that the numbers follow from and that are not what they were, in words."""
    free = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["free"]}
    return [
        f"{name} was {before[name]!r} and is {value!r}"
        for name, value in now.to_mapping().items()
        if name in before and name not in free and before[name] != value
    ]
