"""Where a model's body ends and its head begins: hidden rows out of the one, logits of some rows out of the other.

mlx-lm's models share no interface for this. It is found by watching one call: the head is what comes after the last
submodule whose output is not the logits themselves. What the model does to them there (tied or untied weights, scaling,
soft caps) stays the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class _Stand:
    """In a submodule's place: calls what it is given, and is the submodule in all else."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self._module, self._call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __getitem__(self, name: str) -> Any:
        return self._module[name]

    def __contains__(self, name: str) -> bool:
        return name in self._module


@contextmanager
def _calling(owner: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Within, `owner.name(...)` calls `call`."""
    object.__setattr__(owner, name, _Stand(owner[name], call))
    try:
        yield
    finally:
        object.__delattr__(owner, name)


@dataclass(frozen=True)
class HeadSplit:
    """A model as body and head.

    Attributes:
        owner: the module whose call ends with the head.
        body: the name of its submodule that gives the hidden rows.
    """

    model: nn.Module
    owner: nn.Module
    body_name: str

    def hidden_states(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Hidden rows, [sequences, tokens, hidden]. The logits are never computed, since nobody asks for them."""
        seen: list[mx.array] = []
        body = self.owner[self.body_name]

        def keep(*args: Any, **kwargs: Any) -> mx.array:
            seen.append(body(*args, **kwargs))
            return seen[-1]

        with _calling(self.owner, self.body_name, keep):
            self.model(inputs, cache=cache)
        return seen[-1]

    def logits(self, hidden_states: mx.array) -> mx.array:
        """[rows, vocabulary] of some hidden rows, [rows, hidden]."""
        with _calling(self.owner, self.body_name, lambda *args, **kwargs: hidden_states[None]):
            return self.owner(mx.zeros((1, 1), mx.int32)).squeeze(0)  # an index's gradient would be a scatter


def find_head_split(model: nn.Module) -> HeadSplit | None:
    """The model's body and head, or None where watching does not tell them apart."""
    owner = model
    while True:
        calls, logits = _watch(owner)
        if not calls:
            return None
        name, output = calls[-1]
        if output is not logits:
            return HeadSplit(model, owner, name)
        if len(calls) > 1 and isinstance(calls[-2][1], mx.array):
            return HeadSplit(model, owner, calls[-2][0])
        owner = owner[name]  # it only passes on what a submodule says


def _watch(owner: nn.Module) -> tuple[list[tuple[str, Any]], mx.array]:
    """What the owner's submodules are called for and give, in order, and what it makes of it."""
    calls: list[tuple[str, Any]] = []

    def watched(name: str, module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = module(*args, **kwargs)
            calls.append((name, output))
            return output

        return call

    stands = {name: child for name, child in owner.children().items() if isinstance(child, nn.Module)}
    for name, module in stands.items():
        object.__setattr__(owner, name, _Stand(module, watched(name, module)))
    try:
        logits = owner(mx.zeros((1, 2), mx.int32))
    finally:
        for name in stands:
            object.__delattr__(owner, name)
    return calls, logits
