"""A model with a scalar head: where a `Network` gives log-probs of completions, this one gives their rewards."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.adapter_folder import is_reward_model, load_adapter
from mlx_dpo.adapters.reward_head import attach_reward_head, initial_head_weight, read_reward_head
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.completion_logps import CompletionLogps, CompletionTargets, LogpOptions
from mlx_dpo.forward.head import HeadSplit, find_head_split
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.token_logps import TokenTerms

if TYPE_CHECKING:
    from typing import Unpack


@dataclass(frozen=True)
class RewardNetwork(Network):
    """A network with a reward head in the place of the vocabulary's: r = w . h, float32.

    h is the hidden state at a completion's last token, of the body's output, as in transformers'
    AutoModelForSequenceClassification. So a completion has one number, its reward, where it has a log-prob for each
    token elsewhere: `CompletionLogps.sums` are rewards. The graph of both passes ends at the rewards, so that the
    head's gradient comes with the adapter's, and the vocabulary's head is never run.
    """

    @classmethod
    def from_network(cls, network: Network, weight: mx.array) -> RewardNetwork:
        """Attach a head to a network's model, which is changed in place.

        Args:
            network: a network that computes log-probs.
            weight: [1, hidden], of the head.

        Raises:
            UserError: the head is for another model, or the model can't be split into body and head.
        """
        split = require_head_split(network)
        hidden_size = count_hidden(split)
        if weight.shape[1] != hidden_size:
            message = f"the reward head takes {weight.shape[1]} numbers, and this model has {hidden_size}"
            raise UserError(message, hint="Give the --model that the adapter was trained on.")
        attach_reward_head(network.model, weight)
        values = {field.name: getattr(network, field.name) for field in fields(network)}
        return cls(**{**values, "head_split": split, "chunk_tokens": 0})  # no logits take memory

    @classmethod
    def with_new_head(cls, network: Network, seed: int) -> RewardNetwork:
        """Attach a head with initial weights that are drawn from a seed; see `from_network`."""
        return cls.from_network(network, initial_head_weight(count_hidden(require_head_split(network)), seed))

    def _targets(self, batch: MicroBatch) -> CompletionTargets:
        """One token a completion, in the order of `_hidden_states`."""
        return super()._targets(batch.last_tokens)

    def _hidden_states(self, batch: MicroBatch) -> mx.array:
        """Rewards, [completions, 1]."""
        rewards: mx.array = self.model.reward_head(super()._hidden_states(batch.last_tokens).astype(mx.float32))
        return rewards

    def _logps(
        self,
        batch: MicroBatch,
        hidden_states: mx.array,
        gradients: bool,
        **options: Unpack[LogpOptions],
    ) -> tuple[CompletionLogps, TokenTerms]:
        rewards = hidden_states[:, 0]
        indices = self._targets(batch).sequence_indices
        values = CompletionLogps(np.array(rewards), indices, len(batch.sequences))
        return values, TokenTerms(rewards, mx.ones_like(hidden_states))


def require_head_split(network: Network) -> HeadSplit:
    """Return the network's model as body and head.

    Raises:
        UserError: it can't be split.
    """
    split = network.head_split or find_head_split(network.model)
    if split is None:
        hint = "Use a model with separate layers for hidden states and vocabulary."
        raise UserError("a reward head needs the model's hidden states, and they were not found", hint=hint)
    return split


def count_hidden(split: HeadSplit) -> int:
    """Count the numbers in a hidden state of a model; nothing is computed."""
    return int(split.hidden_states(mx.zeros((1, 2), mx.int32)).shape[-1])


def with_reward_head(policy: Policy, init_adapter: str | None, seed: int) -> Policy:
    """Attach a reward head to a policy: that of its initial adapter, or a new one.

    Args:
        policy: a policy; its model is changed in place.
        init_adapter: the adapter folder that it was loaded from.
        seed: of a new head.

    Raises:
        UserError: the model can't have a head.
    """
    if policy.network.shards:
        message = "a reward head can't be trained with --tensor-parallel"
        raise UserError(message, field="tensor_parallel", hint="Leave it out: pairs are then split over the ranks.")
    if init_adapter is not None and is_reward_model(init_adapter):
        network = RewardNetwork.from_network(policy.network, read_reward_head(init_adapter))
    else:
        network = RewardNetwork.with_new_head(policy.network, seed)
    return replace(policy, network=network, initial_tensors={}, base_tensors={})  # there is no reference policy


def load_reward_network(model: nn.Module, adapter_path: str, *, use_cache: bool = False) -> RewardNetwork:
    """Load the adapter and the head of a reward model onto its base model.

    Args:
        model: the base model, changed in place.
        adapter_path: the adapter folder.
        use_cache: see `Network.from_model`.

    Raises:
        UserError: it is not a reward model, or one of another base model.
    """
    weight = read_reward_head(adapter_path)
    load_adapter(model, adapter_path, allow_reward_model=True)
    network = Network.from_model(model, use_cache=use_cache)
    try:
        return RewardNetwork.from_network(network, weight)
    except UserError as error:
        raise UserError(error.message, where=Where(adapter_path), hint=error.hint) from None
