"""The policy: a network with its trainable tensors, and how it is made from a model and an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.default_keys import default_keys, require_matching_keys
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.distributed.tensor_parallel import check_gradients, shard_model
from mlx_dpo.errors import UserError
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.network import Network
from mlx_dpo.utils.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class Policy:
    """A model made ready to train.

    Attributes:
        network: the model with the forward path that was chosen for it.
        spec: settings of the adapter, with layers and keys resolved.
        initial_tensors: the trainable tensors at the start of the run, by name. Empty for full fine-tuning, where they
            would be a second copy of the weights.
        base_tensors: values of the trainable tensors that reproduce the model without an adapter, by name. Empty for
            full fine-tuning.
        fingerprint: `fingerprint` of the policy at the start of the run.
        notes: notes for the user on how the model is adapted.
    """

    network: Network
    spec: AdapterSpec
    initial_tensors: Tensors
    base_tensors: Tensors
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The network's model."""
        return self.network.model


def make_policy(
    model: nn.Module,
    spec: AdapterSpec,
    init_adapter: str | None,
    group: mx.distributed.Group | None = None,
    memory_limit: int | None = None,
    progress: Progress = NO_PROGRESS,
    *,
    use_cache: bool = False,
) -> Policy:
    """Attach a new adapter, or load that of a folder, and choose the forward path of the model.

    Args:
        model: an mlx-lm model without adapters, changed in place.
        spec: settings of a new adapter.
        init_adapter: an adapter folder, whose own settings replace `spec`; None for a new adapter.
        group: ranks that the frozen weights are sharded across; the model should then have been loaded lazily. None
            for a single process.
        memory_limit: bytes that training may use in total; None for what the machine allows.
        progress: receives each step that may take long.
        use_cache: whether the model was loaded from files; see `Network.from_model`.

    Raises:
        UserError: the model already has adapters, the adapter does not fit it, or mlx can't run it on this machine.
    """
    if any("lora_a" in m for _, m in model.named_modules()):
        raise UserError("the model already has adapters", hint="Load it again, or start from them with init_adapter.")
    notes: list[str] = []
    if init_adapter is None:
        spec, notes = attach_new_adapter(model, spec)
        base = trainable_tensors(model)
    else:
        spec, base = load_adapter(model, init_adapter, lazy=group is not None, allow_reward_model=True)
    initial = trainable_tensors(model)
    if spec.fine_tune_type == "full":
        initial = base = {}
    shards = shard_model(model, spec, group) if group is not None and group.size() > 1 else None
    progress.begin("Checking how the model can be run")
    network = Network.from_model(model, shards, memory_limit, use_cache=use_cache, on_progress=progress.begin)
    if shards:
        check_gradients(model, shards)
    return Policy(network, spec, initial, base, fingerprint(network), tuple(notes))


def attach_new_adapter(model: nn.Module, spec: AdapterSpec) -> tuple[AdapterSpec, list[str]]:
    """Attach a new adapter to a model.

    Args:
        model: an mlx-lm model without adapters, changed in place.
        spec: settings of the adapter.

    Returns:
        The settings with layers and keys resolved, and notes for the user on the adapted layers.

    Raises:
        UserError: a key matches no layer, or a matching layer can't be adapted.
    """
    notes: list[str] = []
    if spec.fine_tune_type != "full" and hasattr(model, "layers"):
        if spec.keys is None:
            keys, notes = default_keys(model, spec.fine_tune_type)
            spec = replace(spec, keys=keys)
        else:
            total = len(model.layers)
            require_matching_keys(model, spec.keys, total if spec.num_layers < 0 else min(spec.num_layers, total))
    return attach_adapter(model, spec), notes


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Disable dropout in a `with` block, but keep training mode: policy and reference are then bit-identical."""
    dropouts = [m for _, m in model.named_modules() if isinstance(m, (nn.Dropout, nn.Dropout2d, nn.Dropout3d))]
    modes = [m.training for m in dropouts]
    was_training = model.training
    model.train()
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module, mode in zip(dropouts, modes, strict=True):
            module.train(mode)
