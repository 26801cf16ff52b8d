"""Splitting a model into body and head: hidden states from the body, logits of selected positions from the head.

mlx-lm's models share no interface for this. The split is found by tracing one call: the head is what comes after the
last submodule whose output is not the logits themselves. What the model does there (tied or untied weights, scaling,
soft caps) stays the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class _SubmoduleProxy:
    """Replaces a submodule: a call goes to the given function, everything else to the submodule."""

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
def _replaced_call(owner: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Make `owner.name(...)` call a function inside a `with` block."""
    object.__setattr__(owner, name, _SubmoduleProxy(owner[name], call))
    try:
        yield
    finally:
        object.__delattr__(owner, name)


@dataclass(frozen=True)
class HeadSplit:
    """A model as body and head.

    Attributes:
        model: the model.
        owner: the module whose call ends with the head.
        body_name: the name of the submodule that returns the hidden states.
    """

    model: nn.Module
    owner: nn.Module
    body_name: str

    def hidden_states(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Run the body. mlx is lazy, so the unused logits are never computed.

        Args:
            inputs: [sequences, tokens], token ids.
            cache: one cache for each of the model's layers that has one; None for none.

        Returns:
            Hidden states, [sequences, tokens, hidden].
        """
        outputs: list[mx.array] = []
        body = self.owner[self.body_name]

        def keep(*args: Any, **kwargs: Any) -> mx.array:
            outputs.append(body(*args, **kwargs))
            return outputs[-1]

        with _replaced_call(self.owner, self.body_name, keep):
            self.model(inputs, cache=cache)
        return outputs[-1]

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Logits, [tokens, vocabulary], of hidden states, [tokens, hidden]."""
        with _replaced_call(self.owner, self.body_name, lambda *args, **kwargs: hidden_states[None]):
            return self.owner(mx.zeros((1, 1), mx.int32)).squeeze(0)  # an index's gradient would be a scatter


def find_head_split(model: nn.Module) -> HeadSplit | None:
    """Split a model into body and head; None if tracing a call does not distinguish them."""
    owner = model
    while True:
        calls, logits = _trace_submodules(owner)
        if not calls:
            return None
        name, output = calls[-1]
        if output is not logits:
            return HeadSplit(model, owner, name)
        if len(calls) > 1 and isinstance(calls[-2][1], mx.array):
            return HeadSplit(model, owner, calls[-2][0])
        owner = owner[name]  # it only returns what a submodule returns


def _trace_submodules(owner: nn.Module) -> tuple[list[tuple[str, Any]], mx.array]:
    """The calls of the owner's submodules with their outputs, in order, and the owner's own output."""
    calls: list[tuple[str, Any]] = []

    def traced(name: str, module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = module(*args, **kwargs)
            calls.append((name, output))
            return output

        return call

    submodules = {name: child for name, child in owner.children().items() if isinstance(child, nn.Module)}
    for name, module in submodules.items():
        object.__setattr__(owner, name, _SubmoduleProxy(module, traced(name, module)))
    try:
        logits = owner(mx.zeros((1, 2), mx.int32))
    finally:
        for name in submodules:
            object.__delattr__(owner, name)
    return calls, logits
