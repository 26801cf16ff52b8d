"""A network with a value head: beside the log-prob of each token, it gives the value of the state before it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.value_head import VALUE_HEAD_TENSORS, attach_value_head, initial_value_head, read_value_head
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.completion_logps import CompletionLogps, LogpOptions
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.reward_network import count_hidden, require_head_split
from mlx_dpo.forward.token_logps import TokenTerms

if TYPE_CHECKING:
    from typing import Unpack


@dataclass(frozen=True)
class ValueNetwork(Network):
    """A network whose body has a second head: V(s_t) = w . h_t + b, float32, of the hidden state before token t.

    The value is a last column of the hidden states, so that both heads' gradients come with the body's in one backward
    pass; the vocabulary's head is given the other columns.

    Attributes:
        hidden_dtype: of the hidden states that the vocabulary's head takes.
    """

    hidden_dtype: mx.Dtype = mx.float32

    @classmethod
    def from_network(cls, network: Network, tensors: Tensors) -> ValueNetwork:
        """Attach a value head to a network's model, which is changed in place.

        Args:
            network: a network that computes log-probs.
            tensors: of the head, as `read_value_head` returns them; empty for a new one.

        Raises:
            UserError: the head is for another model, or the model can't be split into body and head.
        """
        split = require_head_split(network)
        hidden_size = count_hidden(split)
        tensors = tensors or initial_value_head(hidden_size)
        if tensors[VALUE_HEAD_TENSORS[1]].shape != (1, hidden_size):
            message = f"the value head of the adapter does not fit this model, which has {hidden_size} numbers a state"
            raise UserError(message, field="init_adapter")
        attach_value_head(network.model, tensors)
        values = {field.name: getattr(network, field.name) for field in fields(network)}
        dtype = split.hidden_states(mx.zeros((1, 2), mx.int32)).dtype
        return cls(**{**values, "head_split": split}, hidden_dtype=dtype)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Logits, [tokens, vocabulary], of hidden states with their value, [tokens, hidden + 1]."""
        return super().logits(hidden_states[:, :-1].astype(self.hidden_dtype))

    def _hidden_states(self, batch: MicroBatch) -> mx.array:
        """Hidden states and, in the last column, values: [tokens, hidden + 1]."""
        hidden_states = super()._hidden_states(batch).astype(mx.float32)
        return mx.concatenate([hidden_states, self.model.value_head(hidden_states)], axis=1)

    def _logps(
        self, batch: MicroBatch, hidden_states: mx.array, gradients: bool, **options: Unpack[LogpOptions]
    ) -> tuple[CompletionLogps, TokenTerms]:
        logps, terms = super()._logps(batch, hidden_states, gradients, **options)
        return replace(logps, token_values=np.array(hidden_states[:, -1])), terms


def with_value_head(policy: Policy, init_adapter: str | None) -> Policy:
    """Attach a value head to a policy: that of its initial adapter if it has one, or a new one.

    Args:
        policy: a policy; its model is changed in place.
        init_adapter: the adapter folder that it was loaded from.

    Raises:
        UserError: the model can't have a head.
    """
    if policy.network.shards:
        message = "a value head can't be trained with --tensor-parallel"
        raise UserError(message, field="tensor_parallel", hint="Leave it out, or use --loss rloo, which has none.")
    tensors = read_value_head(init_adapter) if init_adapter else {}
    return replace(policy, network=ValueNetwork.from_network(policy.network, tensors))
