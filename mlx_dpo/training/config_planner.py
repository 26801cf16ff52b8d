"""Estimate the memory of training from a model's config.json alone (`mlx-dpo plan --config-only`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.loss_setup import loss_from_config
from mlx_dpo.forward.activation_memory import ActivationMemory, pair_of_length
from mlx_dpo.forward.config_model import build_model, fetch_config
from mlx_dpo.forward.graph_activations import count_activation_bytes, lazy_network
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import attach_new_adapter
from mlx_dpo.forward.reward_network import RewardNetwork
from mlx_dpo.training.policy_setup import adapter_spec, memory_limit

SHARES_OF_MAX_LENGTH = (1 / 8, 1 / 4, 1 / 2, 1)  # lengths that are estimated by default
MIN_LENGTH = 6  # tokens of a pair with a prompt of four and completions of two


@dataclass(frozen=True)
class LengthEstimate:
    """The memory of a step on one pair, whose prompt is twice as long as each of its completions.

    Attributes:
        tokens: length of prompt and completion together, as --max-length counts them.
        peak: bytes at the peak.
        num_checkpointed: feed-forwards and blocks that are recomputed in the backward pass.
        fits: whether the peak is within the limit.
    """

    tokens: int
    peak: int
    num_checkpointed: int
    fits: bool


@dataclass(frozen=True)
class ConfigEstimate:
    """The estimated memory of training.

    Attributes:
        model_type: `model_type` in config.json.
        parameters: number of the model's parameters.
        weights: bytes of the model.
        held: bytes of the weights, the optimizer state and gradients.
        limit: bytes that may be used.
        num_checkpointable: feed-forwards and blocks that can be recomputed in the backward pass.
        lengths: the memory at some lengths.
        longest_pair: tokens of the longest pair that surely fits; 0 if none does.
    """

    model_type: str
    parameters: int
    weights: int
    held: int
    limit: int
    num_checkpointable: int
    lengths: list[LengthEstimate]
    longest_pair: int

    def to_mapping(self) -> dict[str, Any]:
        """Return the estimate as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ConfigEstimate:
        """Make an estimate from the result of `to_mapping`."""
        return cls(**{**values, "lengths": [LengthEstimate(**row) for row in values["lengths"]]})


def estimate_from_config(config: TrainConfig, lengths: Sequence[int] = ()) -> ConfigEstimate:
    """Estimate the memory that `train` with the same settings takes. Neither weights nor data are read.

    Args:
        config: the run's settings.
        lengths: lengths of pairs in tokens; some up to `config.max_length` by default.

    Raises:
        UserError: the config can't be read or has a model type that can't be estimated.
    """
    from mlx_lm.utils import get_total_parameters

    if config.init_adapter:
        hint = "Give the adapter's own settings instead, such as --rank and --num-layers."
        raise UserError("--config-only reads no adapter", field="init_adapter", hint=hint)
    mx.random.seed(config.seed)
    model_config, tensor_names = fetch_config(config.model)
    model = build_model(model_config, tensor_names, name=config.model)
    parameters, weights = get_total_parameters(model), _num_bytes(tree_flatten(model.parameters()))
    attach_new_adapter(model, adapter_spec(config))
    limit = memory_limit(config)
    network = lazy_network(model.train(), limit)
    if loss_from_config(config).needs_reward_head:
        network = RewardNetwork.with_new_head(network, config.seed)
    memory_model = MemoryModel.with_limits(
        network,
        ActivationMemory.from_two_pairs(network, partial(count_activation_bytes, network)),
        _num_bytes(tree_flatten(model.parameters())),
        usable_bytes=limit,
        memory_limit=limit if config.memory_limit else None,
        grad_checkpoint=config.grad_checkpoint,
    )
    return ConfigEstimate(
        model_type=model_config["model_type"],
        parameters=parameters,
        weights=weights,
        held=memory_model.resident_bytes,
        limit=limit,
        num_checkpointable=network.num_checkpointable,
        lengths=[_at_length(memory_model, tokens, limit) for tokens in lengths or _default_lengths(config)],
        longest_pair=memory_model.max_pair_length(limit),
    )


def _num_bytes(tensors: Sequence[tuple[str, mx.array]]) -> int:
    return sum(tensor.nbytes for _, tensor in tensors)


def _default_lengths(config: TrainConfig) -> list[int]:
    return sorted({max(MIN_LENGTH, int(share * config.max_length)) for share in SHARES_OF_MAX_LENGTH})


def _at_length(memory_model: MemoryModel, tokens: int, limit: int) -> LengthEstimate:
    pair = pair_of_length(tokens)
    peak = int(memory_model.peak_bytes(pair))
    return LengthEstimate(tokens, peak, memory_model.num_checkpointed(pair), peak <= limit)
