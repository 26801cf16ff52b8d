"""Keeps the model of a judge in memory between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import mlx.core as mx

Model = TypeVar("Model")


class ModelSession(Generic[Model]):
    """A model that is loaded at the start of a `with` block and released at its end; blocks inside share it.

    Attributes:
        model: the model; None outside of such a block.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        """Create a session without a model.

        Args:
            load: loads the model.
        """
        self._load = load
        self.model: Model | None = None

    @contextmanager
    def __call__(self) -> Iterator[Model]:
        """A context with the model in memory."""
        if self.model is not None:
            yield self.model
            return
        self.model = self._load()
        try:
            yield self.model
        finally:
            self.model = None
            mx.clear_cache()
