"""Numbers and names for people."""

from __future__ import annotations

import pytest

from mlx_dpo.utils.formatting import (
    closest,
    did_you_mean,
    format_bytes,
    format_count,
    format_duration,
    plural,
    strip_eval_prefix,
)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (45_600_000, "45.6 MB"), (123e9, "123 GB")]
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (7505, "2:05:05")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(789, "789"), (1230, "1.23k"), (45_600_000, "45.6M"), (4e9, "4.00B")])
def test_counts(count: float, text: str) -> None:
    assert format_count(count) == text


def test_plurals() -> None:
    assert plural(1, "pair") == "1 pair"
    assert plural(2000, "pair") == "2,000 pairs"


def test_the_nearest_name() -> None:
    assert closest("lerning_rate", ["learning_rate", "beta"]) == "learning_rate"
    assert did_you_mean("xyz", ["learning_rate"]) == ""
    assert did_you_mean("betta", ["learning_rate", "beta"]) == "Did you mean `beta`?"


def test_the_prefix_of_held_out_metrics() -> None:
    assert strip_eval_prefix({"step": 1, "eval_loss": 0.5}) == {"step": 1, "loss": 0.5}
