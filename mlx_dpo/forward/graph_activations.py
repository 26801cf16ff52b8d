"""Bytes of activations that a forward pass keeps, counted in the graph of both passes; nothing is computed.

mlx reports the operations of a traced function with their shapes. What the forward pass keeps are the buffers of its
arrays that an operation of the backward pass takes as input. The count is of the same graph that training builds, so it
needs no formula for any model type, and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.device import usable_memory
from mlx_dpo.forward.head import find_head_split
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.path_agreement import can_build, count_logits, head_is_adapted
from mlx_dpo.forward.token_logps import head_chunk_tokens

# Operations whose output lies in the buffer of their first input.
_VIEWS = frozenset(
    [
        *("AsStrided", "Broadcast", "BroadcastAxes", "Copy", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"),
        *("Squeeze", "StopGradient", "Transpose", "Unflatten", "View"),
    ]
)
_NOT_CONTIGUOUS = frozenset(("AsStrided", "Broadcast", "BroadcastAxes", "Slice", "Split", "Transpose"))
_DEPENDS = "Depends"  # its outputs lie in the buffers of its first inputs


def count_activation_bytes(network: Network, batch: MicroBatch, num_checkpointed: int = 0) -> int:
    """Count the bytes that `Network.activation_bytes` measures, without running the model.

    Args:
        network: its weights may be unevaluated.
        batch: the micro-batch.
        num_checkpointed: modules that keep only their inputs.

    Raises:
        UserError: the forward pass of this model type can't be traced.
    """
    model = network.model
    names, arrays = zip(*tree_flatten(model.parameters()), strict=True)

    def both_passes(*parameters: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        hidden_states, placeholder, gradients = network.lazy_backward(batch, num_checkpointed)
        return [hidden_states, placeholder, *(gradient for _, gradient in tree_flatten(gradients))]

    graph = _Graph()
    try:
        with _traceable_operations():
            mx.export_function(graph.record, both_passes, *arrays)
    except (ValueError, RuntimeError) as error:
        family = type(model).__module__.rpartition(".")[2]
        raise UserError(
            f"the memory of a model of type {family} can't be derived from its config alone: {error}",
            hint="Run `mlx-dpo plan` with the weights and --data.",
        ) from error
    finally:
        model.update(tree_unflatten(list(zip(names, arrays, strict=True))))
    return graph.kept_bytes(num_results=2)


def lazy_network(model: nn.Module, memory_limit: int | None = None) -> Network:
    """Choose how to run a model whose weights are not evaluated, by whether the graph can be built.

    `Network.from_model` also checks whether the numbers agree with the plain forward pass.

    Args:
        model: the mlx-lm model.
        memory_limit: bytes that may be used in total; None for what the machine allows.

    Raises:
        UserError: the model can't be run as it is adapted.
    """
    vocab_size = count_logits(model, evaluate=False)
    chunk_tokens = head_chunk_tokens(vocab_size, memory_limit or usable_memory())
    plain = Network(model, None, PromptSharing.NONE, vocab_size, chunk_tokens)
    split = None if head_is_adapted(model) else find_head_split(model)
    candidates = [replace(plain, head_split=split, sharing=sharing) for sharing in PromptSharing] if split else []
    return next((network for network in candidates if can_build(network.lazy_hidden_states)), plain)


@dataclass(frozen=True)
class _Operation:
    """An operation: its name, the names of its inputs, and the sizes of its outputs in bytes by their names."""

    name: str
    inputs: list[str]
    outputs: dict[str, int]


@dataclass
class _Graph:
    """The operations of a function, in the order in which they can be run.

    Attributes:
        operations: all of them.
        results: names of the arrays that the function returns.
    """

    operations: list[_Operation] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def record(self, message: dict[str, Any]) -> None:
        """Take one of the messages of `mx.export_function`."""
        if message["type"] == "outputs":
            self.results = [name for name, *_ in message["outputs"]]
        elif message["type"] == "primitive":
            sizes = {name: prod(shape) * dtype.size for name, shape, dtype in message["outputs"]}
            self.operations.append(_Operation(message["name"], [name for name, *_ in message["inputs"]], sizes))

    @cached_property
    def producer(self) -> dict[str, int]:
        """The index of the operation that has an array as its output; function inputs and constants have none."""
        return {name: i for i, operation in enumerate(self.operations) for name in operation.outputs}

    def ancestors(self, names: Iterable[str], stop: Collection[int] = ()) -> set[int]:
        """The operations that arrays are computed by; those in `stop`, and what is before them, are left out."""
        indices, stack = set[int](), list(names)
        while stack:
            i = self.producer.get(stack.pop())
            if i is not None and i not in indices and i not in stop:
                indices.add(i)
                stack += self.operations[i].inputs
        return indices

    def kept_bytes(self, num_results: int) -> int:
        """Bytes that stay when the first results are evaluated and the others are not."""
        forward = self.ancestors(self.results[:num_results])
        backward_inputs = {
            name for i, operation in enumerate(self.operations) if i not in forward for name in operation.inputs
        }
        kept, dropped = backward_inputs | set(self.results[:num_results]), set[int]()
        for i in filter(self._ends_module, forward):
            outputs = self.operations[i].outputs
            starts = {self.producer[name] for name in self.operations[i].inputs[len(outputs) :]}
            inputs = {self.operations[start].inputs[0] for start in starts}
            before = self.ancestors(inputs)
            inside = self.ancestors(self.operations[i].inputs[: len(outputs)], stop=before | starts) | starts
            if self._depend_on(starts, inside) & backward_inputs:  # a gradient goes through it
                dropped |= inside
                kept |= inputs | set(outputs)  # mlx keeps both
        buffers = self._buffers()
        computed = forward - dropped
        own = {name for name in kept if self.producer.get(name) in computed}
        return sum(dict(buffers[name] for name in own).values())

    def _depend_on(self, starts: set[int], operations: set[int]) -> set[str]:
        """The outputs of some operations, and of those among others that take them, directly or not."""
        dependent = {name for start in starts for name in self.operations[start].outputs}
        for i in sorted(operations):  # inputs come first
            if not dependent.isdisjoint(self.operations[i].inputs):
                dependent |= set(self.operations[i].outputs)
        return dependent

    def _ends_module(self, index: int) -> bool:
        """Whether an operation is the mark of a checkpointed module's outputs."""
        operation = self.operations[index]
        if operation.name != _DEPENDS or len(operation.inputs) == len(operation.outputs):
            return False
        last = self.operations[self.producer.get(operation.inputs[-1], index)]
        return last.name == _DEPENDS and list(last.outputs.values()) == [1]  # byte: the tag of `_marked`

    def _buffers(self) -> dict[str, tuple[str, int]]:
        """By array: the name of the array whose buffer it lies in, and its bytes; 0 for function inputs."""
        buffers: dict[str, tuple[str, int]] = {}
        scattered = set[str]()  # not contiguous: a reshape copies them
        for operation in self.operations:
            for i, (name, size) in enumerate(operation.outputs.items()):
                source = operation.inputs[i if operation.name == _DEPENDS else 0] if operation.inputs else ""
                copies = operation.name in ("Reshape", "Flatten") and source in scattered
                if copies or operation.name not in (*_VIEWS, _DEPENDS) or not source:
                    buffers[name] = (name, size)
                    continue
                buffers[name] = buffers.get(source, (source, 0))
                if operation.name in _NOT_CONTIGUOUS or source in scattered:
                    scattered.add(name)
        return buffers


@contextmanager
def _traceable_operations() -> Iterator[None]:
    """Replace the functions whose operations mlx can't report, by others that keep the same for the backward pass."""
    replaced = {name: getattr(mx, name) for name in ("checkpoint", "custom_function", "gather_mm", "contiguous")}
    replacements: tuple[Any, ...] = (
        _marked,
        _MarkedFunction,
        _product_of_one_expert,
        lambda a, **_: a * mx.array(1, a.dtype),
    )
    for name, replacement in zip(replaced, replacements, strict=True):
        setattr(mx, name, replacement)
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(mx, name, function)


def _marked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpointed function that is run once; its inputs and outputs are marked in the graph."""

    def call(*args: Any) -> Any:
        inputs = [mx.depends([array], [])[0] for _, array in tree_flatten(args)]
        outputs = function(*_with_leaves(args, inputs))
        tag = mx.depends([mx.array(True)], [])  # models use `depends` too, with other arrays
        return _with_leaves(outputs, mx.depends([array for _, array in tree_flatten(outputs)], [*inputs, *tag]))

    return call


def _with_leaves(tree: Any, leaves: list[mx.array]) -> Any:
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


class _MarkedFunction:
    """Replaces `mx.custom_function`, whose backward pass too starts from inputs and outputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = _marked(function)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def vjp(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        return backward


def _product_of_one_expert(
    a: mx.array, b: mx.array, lhs_indices: Any = None, rhs_indices: mx.array | None = None, **_: Any
) -> mx.array:
    """Replaces `mx.gather_mm`: its output's shape, and both factors kept."""
    assert lhs_indices is None and rhs_indices is not None
    shape = mx.broadcast_shapes(a.shape[:-2], rhs_indices.shape)
    return mx.broadcast_to(a, (*shape, *a.shape[-2:])) @ b[0]
