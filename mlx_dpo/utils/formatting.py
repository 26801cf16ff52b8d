"""Human-readable numbers, durations, commands and suggestions of names."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
EVAL_PREFIX = "eval_"  # before the name of a metric that was measured on held-out data


def format_bytes(count: float) -> str:
    """A size in decimal units with three significant digits, such as 1.23 GB or 45.6 kB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{_decimals(count / size)}f} {unit}"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """A duration as minutes and seconds, 3:20, or with hours, 2:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_count(count: float) -> str:
    """A number with three significant digits and a suffix, such as 1.23B, 45.6M or 789."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.{_decimals(count / size)}f}{unit}"
    return f"{count:.0f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as "1 pair" or "2,000 pairs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shell_command(*arguments: object) -> str:
    """A command to copy into a shell; words are quoted if necessary."""
    return shlex.join(map(str, arguments))


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known name that is most similar to a name.

    Args:
        name: the name.
        known: names to choose from.
        cutoff: smallest similarity, from 0 to 1.

    Returns:
        The name; None if none is similar.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the known name that is most similar to a name.

    Args:
        name: the name.
        known: names to choose from.
        cutoff: smallest similarity, from 0 to 1.

    Returns:
        A question; empty if no name is similar.
    """
    match = closest(name, known, cutoff)
    return f"Did you mean `{match}`?" if match else ""


def strip_eval_prefix(metrics: Mapping[str, T]) -> dict[str, T]:
    """A metrics line with the names that its held-out metrics have in training; other keys stay."""
    return {name.removeprefix(EVAL_PREFIX): value for name, value in metrics.items()}


def _decimals(value: float) -> int:
    """Decimals that leave three significant digits of a value from 1 to 1000."""
    return 2 if value < 10 else 1 if value < 100 else 0
