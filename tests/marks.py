"""Parameters of which `make test` takes a few and `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], every: int) -> list[Any]:
    """The parameters, of which all but every n-th are marked slow.

    Args:
        values: of `pytest.mark.parametrize`.
        every: n; the first is kept.
    """
    return [value if i % every == 0 else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]
