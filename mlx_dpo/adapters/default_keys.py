"""The layers to adapt: those that adapters can be on, those that training leaves out unless asked, and wrong names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UserError
from mlx_dpo.utils.formatting import closest

LINEAR_KINDS = (nn.Linear, nn.QuantizedLinear)


def adaptable_keys(model: nn.Module, fine_tune_type: str) -> tuple[str, ...]:
    """Names, inside a block, of all linear layers that adapters of a type (lora, dora) can be on."""
    is_lora = fine_tune_type == "lora"
    kinds: tuple[type[nn.Module], ...] = (*LINEAR_KINDS, *_expert_kinds()) if is_lora else LINEAR_KINDS
    return tuple(
        sorted(
            {
                name
                for layer in model.layers
                for name, module in layer.named_modules()
                if isinstance(module, kinds) or (is_lora and hasattr(module, "to_lora"))
            }
        )
    )


def default_keys(model: nn.Module, fine_tune_type: str) -> tuple[tuple[str, ...], list[str]]:
    """The layers that a run adapts where it names none.

    Left out are routers of experts, whose update no loss here keeps balanced, and layers whose weights the model reads
    itself instead of calling them, so that an adapter would be bypassed or break the model.

    Args:
        model: without adapters.
        fine_tune_type: lora or dora.

    Returns:
        Their names inside a block, and a note on each group that was left out.
    """
    keys = set(adaptable_keys(model, fine_tune_type))
    notes = []
    for left_out, reason in (
        (_router_keys(model) & keys, "they route tokens to experts, and no loss keeps the experts balanced"),
        (_keys_read_by_weight(model) & keys, "the model reads their weights without calling them"),
    ):
        keys -= left_out
        if left_out:
            notes.append(f"not adapted by default: {', '.join(sorted(left_out))}; {reason} (--lora-keys names layers).")
    return tuple(sorted(keys)), notes


def _expert_kinds() -> tuple[type[Any], ...]:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear  # the supervisor needs no mlx-lm

    return SwitchLinear, QuantizedSwitchLinear


def require_matching_keys(model: nn.Module, keys: Iterable[str], num_layers: int) -> None:
    """Check that every key names a layer.

    Args:
        model: the model.
        keys: names inside a block, or of modules outside of the blocks.
        num_layers: the last blocks, which are adapted.

    Raises:
        UserError: a key names nothing.
    """
    blocks = model.layers[len(model.layers) - num_layers :]
    modules = {name: module for block in blocks for name, module in block.named_modules() if name}
    modules |= {name: module for name, module in model.named_modules() if name}
    unknown = [key for key in keys if key not in modules]
    if not unknown:
        return
    known = adaptable_keys(model, "lora")
    near = [match for key in unknown if (match := closest(key, known))]
    hint = f"Did you mean {', '.join(f'`{name}`' for name in near)}? " if near else ""
    where = "" if num_layers == len(model.layers) else f" in the last {num_layers} blocks"
    raise UserError(
        f"no layer of this model{where} is named {', '.join(repr(key) for key in unknown)}",
        field="lora_keys",
        hint=f"{hint}The layers of a block: {', '.join(known[:20])}.",
    )


def _router_keys(model: nn.Module) -> set[str]:
    """Linear layers that give a number for each expert, in the smallest module that holds more than the experts."""
    keys, expert_kinds = set(), _expert_kinds()
    for block in model.layers:
        modules = {name: module for name, module in block.named_modules() if name}
        for name, experts in modules.items():
            if isinstance(experts, expert_kinds):
                beside = _modules_beside(modules, name.rpartition(".")[0])
                keys |= {
                    other
                    for other, module in beside.items()
                    if isinstance(module, LINEAR_KINDS) and module.weight.shape[0] == experts.num_experts
                }
    return keys


def _modules_beside(modules: dict[str, nn.Module], group: str) -> dict[str, nn.Module]:
    """What is in the smallest module around `group` that holds something else too."""
    around = group
    while around:
        around = around.rpartition(".")[0]
        prefix = f"{around}." if around else ""
        beside = {
            name: module
            for name, module in modules.items()
            if name.startswith(prefix) and not f"{name}.".startswith(f"{group}.") and not group.startswith(f"{name}.")
        }
        if beside:
            return beside
    return {}


def _keys_read_by_weight(model: nn.Module) -> set[str]:
    """Linear layers whose arrays the model reads, by a forward pass that is not evaluated."""
    names = {id(module): name for block in model.layers for name, module in block.named_modules()}
    modules = [module for block in model.layers for _, module in block.named_modules() if type(module) in LINEAR_KINDS]
    with _recorded_reads(modules) as reads:
        try:
            model(mx.zeros((1, 1), mx.int32))
        except Exception:  # a model that can't be run is reported where it is run for its numbers
            return set()
    return {names[id(module)] for module in reads}


@contextmanager
def _recorded_reads(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Record which modules have an array read as an attribute, which mlx's linear layers don't do themselves."""
    reads: list[nn.Module] = []

    def recording(kind: type) -> type:
        class Recording(kind):
            def __getattr__(self, name: str) -> Any:
                if name in self:
                    reads.append(self)
                return super().__getattr__(name)

        return Recording

    kinds = {kind: recording(kind) for kind in LINEAR_KINDS}
    swapped = [(module, type(module)) for module in modules]
    try:
        for module, kind in swapped:
            module.__class__ = kinds[kind]
        yield reads
    finally:
        for module, kind in swapped:
            module.__class__ = kind
