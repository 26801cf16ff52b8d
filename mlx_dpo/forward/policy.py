"""The policy: a network with what is trained of it, and the states it can be put in for a while."""

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
        spec: what is trained, with layers and keys resolved.
        fingerprint: of the policy as the run starts.
        initial, base: the trained tensors as the run starts, and those that stand for the model without an adapter;
            empty for full fine-tuning, where they would be a second copy of the weights.
        notes: what a user should know of how the model is adapted.
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
    """Attach a fresh adapter, or that of a folder, and find out how the model can be run.

    Args:
        model: an mlx-lm model without adapters, changed in place.
        spec: the fresh adapter's settings.
        init_adapter: an adapter folder, whose own settings replace `spec`; None for a fresh adapter.
        group: ranks that the frozen weights are to be shared out over; best of a model that was loaded lazily.
        memory_limit: bytes that training may use in total; None for what the machine allows.
        progress: receives what is being done, where it may take long.
        use_cache: whether the model was loaded from files; see `Network.from_model`.

    Raises:
        UserError: the model has adapters already, the adapter does not fit it, or it can't be run here.
    """
    if any("lora_a" in m for _, m in model.named_modules()):
        raise UserError("the model has adapters already", hint="Load it afresh, or start from them by init_adapter.")
    notes: list[str] = []
    if init_adapter is None:
        spec, notes = attach_new_adapter(model, spec)
        base = trainable_tensors(model)
    else:
        spec, base = load_adapter(model, init_adapter, lazy=group is not None)
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
    """Attach a fresh adapter. Returns its spec, resolved, and notes on the layers that it goes on."""
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
    """Within, nothing is dropped; all else computes as in training, so that policy and reference agree to the bit."""
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
