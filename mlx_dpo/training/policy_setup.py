"""Load a run's policy, and measure the memory that it needs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_settings import adapter_settings, require_equal_settings
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.forward.device import keep_weights_resident, parse_memory, runs_on_cpu, usable_memory
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel
from mlx_dpo.forward.micro_batch_size import choose_micro_batch_tokens
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.forward.oom_fallback import OomFallback
from mlx_dpo.forward.policy import Policy, make_policy
from mlx_dpo.utils.progress import Progress


def memory_limit(config: TrainConfig) -> int:
    """Return the bytes that a run may use."""
    return parse_memory(config.memory_limit) if config.memory_limit else usable_memory()


def adapter_spec(config: TrainConfig) -> AdapterSpec:
    """Return the adapter settings of a config, with layers and keys not resolved yet."""
    return AdapterSpec(
        fine_tune_type=config.fine_tune_type,
        num_layers=config.num_layers,
        rank=config.rank,
        scale=config.scale,
        dropout=config.dropout,
        keys=None if config.lora_keys is None else tuple(config.lora_keys),
        fuse_bits=config.fuse_bits,
    )


def common_fallback(fallback: OomFallback, communicator: Communicator) -> OomFallback:
    """Combine the memory reductions of all ranks, if all of them run the same micro-batches.

    Args:
        fallback: this rank's reductions.
        communicator: ranks that train together.
    """
    if communicator.data_parallel:
        return fallback
    fallbacks = [OomFallback(**values) for values in communicator.all_gather_json(asdict(fallback))]
    share = min(item.micro_batch_share for item in fallbacks)
    return OomFallback(share, any(item.grad_checkpoint for item in fallbacks))


def make_memory_model(config: TrainConfig, policy: Policy, fallback: OomFallback) -> tuple[TrainConfig, MemoryModel]:
    """Measure the memory that micro-batches need.

    Args:
        config: the run's settings.
        policy: the policy.
        fallback: memory reductions after an out-of-memory crash.

    Returns:
        The config, with the micro-batch size if that was measured, and the memory model.
    """
    memory_model = MemoryModel.for_training(
        policy.network,
        usable_memory(),
        parse_memory(config.memory_limit) if config.memory_limit else None,
        config.grad_checkpoint or fallback.grad_checkpoint,
        fallback.micro_batch_share,
        config.micro_batch_tokens or SATURATING_TOKENS,
    )
    if config.micro_batch_tokens or runs_on_cpu():
        return config, memory_model
    tokens = choose_micro_batch_tokens(memory_model)
    memory_model = replace(memory_model, max_tokens=int(fallback.micro_batch_share * tokens))
    return config.replace(micro_batch_tokens=tokens), memory_model


def load_policy(
    config: TrainConfig, model: nn.Module | None, communicator: Communicator, progress: Progress
) -> tuple[Policy, Path | None]:
    """Load the model, and attach the layers to train.

    Args:
        config: the run's settings.
        model: a model in memory; None to load `config.model`.
        communicator: ranks that train together.
        progress: receives each step that may take long.

    Returns:
        The policy, and the folder that its model was loaded from; None for a model in memory.

    Raises:
        UserError: the model or the adapter can't be loaded, or they don't fit.
    """
    keep_weights_resident()
    mx.reset_peak_memory()
    mx.random.seed(config.seed)  # of the adapters' initial values
    spec = adapter_spec(config)
    shard_group = None if communicator.data_parallel else communicator.mlx_group
    loaded = load_model(config.model, lazy=shard_group is not None) if model is None else None
    model = loaded.model if loaded else model
    limit, is_from_files = memory_limit(config), loaded is not None
    policy = make_policy(model, spec, config.init_adapter, shard_group, limit, progress, use_cache=is_from_files)
    if config.init_adapter:
        requested = adapter_settings(config)
        if config.num_layers > 0:
            requested["num_layers"] = min(config.num_layers, len(policy.model.layers))
        require_equal_settings(requested, policy.spec, config.init_adapter)
    return policy, loaded.path if loaded else None


def resolved_adapter_settings(spec: AdapterSpec, config: TrainConfig) -> dict[str, Any]:
    """Return the adapter settings as resolved by the model or read from an initial adapter.

    Args:
        spec: settings of the adapter, with layers and keys resolved.
        config: the run's settings.
    """
    settings = {name: value for name, value in asdict(spec).items() if name in config.to_mapping()}
    return settings if spec.keys is None else {**settings, "lora_keys": list(spec.keys)}
