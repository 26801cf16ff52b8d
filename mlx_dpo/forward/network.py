"""Forward passes of a model: log-probs of completions with as little work as the model allows."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.completion_logps import CompletionLogps, CompletionTargets
from mlx_dpo.forward.device import usable_memory
from mlx_dpo.forward.gradient_checkpointing import feed_forwards, gradient_checkpointing
from mlx_dpo.forward.head import HeadSplit, find_head_split
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.path_agreement import (
    CompletionSums,
    Sequences,
    agrees,
    count_logits,
    head_is_adapted,
    remembered,
)
from mlx_dpo.forward.shared_prefix import completion_hidden_states
from mlx_dpo.forward.token_logps import TokenTerms, head_chunk_tokens, token_logps
from mlx_dpo.utils.random_state import random_state
from mlx_dpo.utils.stop_flag import check_stop
from mlx_dpo.utils.tensor_names import block_prefix

if TYPE_CHECKING:
    from mlx_dpo.distributed.tensor_parallel import TensorParallelism


class PromptSharing(Enum):
    """How completions share the computation of their prompt; the values are descriptions for people."""

    ANY_PROMPTS = "the prompt once for all its completions"
    ONE_PROMPT = "the prompt once for all its completions, one prompt at a time"
    NONE = "prompt and completion together"


@dataclass(frozen=True)
class Network:
    """A model with the ways of running it that were found to work.

    Attributes:
        model: the mlx-lm model.
        head_split: the model as body and head; None where the split is not found.
        sharing: how completions share the computation of their prompt.
        vocab_size: number of logits.
        chunk_tokens: tokens whose logits are in memory at a time.
        shards: tensor parallelism; None where this process has all weights. With it, all ranks call every method
            together, and the sum of their gradients is the gradient.
    """

    model: nn.Module
    head_split: HeadSplit | None
    sharing: PromptSharing
    vocab_size: int
    chunk_tokens: int
    shards: TensorParallelism | None = None

    @classmethod
    def from_model(
        cls, model: nn.Module, shards: TensorParallelism | None = None, memory_limit: int | None = None
    ) -> Network:
        """Choose the cheapest way of running a model that agrees with its plain forward pass on a few sequences.

        Args:
            model: the mlx-lm model.
            shards: tensor parallelism.
            memory_limit: bytes that may be used in total; None for what the machine allows.

        Raises:
            UserError: the model itself can't be run.
        """
        vocab_size = count_logits(model)
        chunk_tokens = head_chunk_tokens(vocab_size, memory_limit or usable_memory())
        plain = cls(model, None, PromptSharing.NONE, vocab_size, chunk_tokens, shards)
        split = None if head_is_adapted(model) else find_head_split(model)
        candidates = [replace(plain, head_split=split, sharing=sharing) for sharing in PromptSharing] if split else []
        mode, plain_sums = model.training, remembered(plain._completion_sums)
        model.eval()  # no dropout
        try:
            agreeing = (network for network in candidates if plain.min_over_ranks(network._agrees_with(plain_sums)))
            return next(agreeing, plain)
        finally:
            model.train(mode)

    def _agrees_with(self, plain_sums: CompletionSums) -> bool:
        several_prompts = self.sharing is PromptSharing.ANY_PROMPTS
        return agrees(self._completion_sums, plain_sums, several_prompts=several_prompts)

    def _completion_sums(self, sequences: Sequences) -> np.ndarray:
        return self.logps(MicroBatch((), tuple(sequences))).sums

    def min_over_ranks(self, value: float) -> float:
        """The smallest value of all ranks under tensor parallelism, for decisions that ranks must take alike."""
        return value if self.shards is None else self.shards.all_min(value)

    @property
    def num_checkpointable(self) -> int:
        """Number of modules that can be checkpointed: feed-forwards, then blocks."""
        return len(feed_forwards(self.model)) + len(self.model.layers)

    def logps(
        self, batch: MicroBatch, *, collision_logps: bool = False, reference_hidden_states: mx.array | None = None
    ) -> CompletionLogps:
        """Compute the log-prob of every completion token, end of turn included; evaluated.

        Args:
            batch: the micro-batch.
            collision_logps: whether to compute what `CompletionLogps.alignments` needs.
            reference_hidden_states: [tokens, hidden], of a reference, to compute `CompletionLogps.kls`.
        """
        hidden_states = self.lazy_hidden_states(batch)
        return self._logps(batch, hidden_states, False, collision_logps, reference_hidden_states)[0]

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """Hidden states at the inputs of all completion tokens, [tokens, hidden]; evaluated."""
        hidden_states = self.lazy_hidden_states(batch)
        mx.eval(hidden_states)
        return hidden_states

    def lazy_hidden_states(self, batch: MicroBatch) -> mx.array:
        """`hidden_states`, not evaluated."""
        with patched_mlx():
            return self._hidden_states(batch)

    def trace(
        self,
        batch: MicroBatch,
        num_checkpointed: int = 0,
        *,
        collision_logps: bool = False,
        reference_hidden_states: mx.array | None = None,
    ) -> ForwardTrace:
        """Compute log-probs and keep what the backward pass needs.

        The graph of the backward pass is built with a placeholder for the upstream gradient, which is filled in once
        the loss's gradient is known: mlx builds both passes at once, and evaluating the head inside of
        `value_and_grad` would keep all logits in memory.

        Args:
            batch: the micro-batch.
            num_checkpointed: modules that keep only their inputs (gradient checkpointing).
            collision_logps: see `logps`.
            reference_hidden_states: see `logps`.
        """
        hidden_states, upstream_grad, gradients = self._build_backward(batch, num_checkpointed)
        logps, terms = self._logps(batch, hidden_states, True, collision_logps, reference_hidden_states)
        return ForwardTrace(logps, terms, upstream_grad, gradients)

    def activation_bytes(self, batch: MicroBatch, num_checkpointed: int = 0) -> int:
        """Measure the bytes that a forward pass keeps for its backward pass."""
        mx.synchronize()
        gc.collect()  # nothing else is freed between the two readings
        mx.clear_cache()  # a cached buffer that is reused would count in full
        before = mx.get_active_memory()
        backward = self._build_backward(batch, num_checkpointed)
        mx.synchronize()
        num_bytes = mx.get_active_memory() - before
        del backward  # it holds the activations
        return int(-self.min_over_ranks(-num_bytes))

    def _build_backward(self, batch: MicroBatch, num_checkpointed: int) -> tuple[mx.array, mx.array, Any]:
        """`lazy_backward` with the hidden states and the placeholder evaluated."""
        hidden_states, placeholder, gradients = self.lazy_backward(batch, num_checkpointed)
        mx.eval(hidden_states, placeholder)
        return hidden_states, placeholder, gradients

    def lazy_backward(self, batch: MicroBatch, num_checkpointed: int = 0) -> tuple[mx.array, mx.array, Any]:
        """Build the graph of both passes; nothing is computed.

        Args:
            batch: the micro-batch.
            num_checkpointed: modules that keep only their inputs.

        Returns:
            Hidden states, [tokens, hidden]; the placeholder of their gradient, [tokens, hidden] float32; and from it
            the gradients of the trainable parameters.
        """
        hidden_states: list[mx.array] = []
        placeholders: list[mx.array] = []
        seeds: list[int] = []

        def product_with_placeholder() -> mx.array:
            hidden_states.append(self._hidden_states(batch))
            placeholders.append(mx.zeros(hidden_states[0].shape))
            seeds.append(random_state())
            return (hidden_states[0] * placeholders[0]).sum()

        parameters = self.model.trainable_parameters()
        with gradient_checkpointing(self.model, num_checkpointed), patched_mlx():
            _, gradients = nn.value_and_grad(self.model, product_with_placeholder)()
        self.model.update(parameters)  # those it is left with are of this graph, and would keep its activations
        if self.shards:
            gradients = self.shards.scale_replicated(gradients)
        mx.random.seed(seeds[0])  # checkpointed blocks have reset the random state
        return hidden_states[0], placeholders[0], gradients

    def _logps(
        self,
        batch: MicroBatch,
        hidden_states: mx.array,
        gradients: bool,
        collision_logps: bool,
        reference_hidden_states: mx.array | None,
    ) -> tuple[CompletionLogps, TokenTerms]:
        targets = self._targets(batch)
        terms = token_logps(
            hidden_states,
            mx.array(targets.token_ids),
            self.logits,
            self.chunk_tokens,
            gradients=gradients,
            collision_logps=collision_logps,
            reference_hidden_states=reference_hidden_states,
        )
        return CompletionLogps.from_token_terms(batch, targets, terms), terms

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Logits, [tokens, vocabulary], of hidden states, [tokens, hidden]."""
        return hidden_states if self.head_split is None else self.head_split.logits(hidden_states)

    def _targets(self, batch: MicroBatch) -> CompletionTargets:
        """The completion tokens, in the order of `_hidden_states`."""
        if self.sharing is PromptSharing.NONE:
            padded = batch.padded_sequences
            return CompletionTargets.from_groups([(range(len(padded.targets)), padded.targets, padded.completion_mask)])
        groups = batch.shared_prompts.completion_groups
        return CompletionTargets.from_groups(
            [(group.sequence_indices, group.targets, group.completion_mask) for group in groups]
        )

    def _hidden_states(self, batch: MicroBatch) -> mx.array:
        """Hidden states at completion tokens, [tokens, hidden]; logits without a split."""
        if self.sharing is PromptSharing.NONE:
            padded = batch.padded_sequences
            body = self.model if self.head_split is None else self.head_split.hidden_states
            return _select(body(mx.array(padded.inputs)), padded.completion_mask)
        assert self.head_split is not None
        shared = batch.shared_prompts
        groups = zip(completion_hidden_states(self.head_split, shared), shared.completion_groups, strict=True)
        return mx.concatenate([_select(hidden, group.completion_mask) for hidden, group in groups])


@dataclass(frozen=True)
class ForwardTrace:
    """A micro-batch's forward pass, ready for its backward pass.

    Attributes:
        logps: log-probs of the completions.
        terms: log-probs and their gradients by token.
        upstream_grad: [tokens, hidden] float32, placeholder of the loss's gradient with respect to the hidden states.
        gradients: of the trainable parameters, lazily computed from `upstream_grad`.
    """

    logps: CompletionLogps
    terms: TokenTerms
    upstream_grad: mx.array
    gradients: Any

    def gradient(self, sums: np.ndarray, plain: np.ndarray | None = None, kls: np.ndarray | None = None) -> Any:
        """Compute the gradient of the trainable parameters; evaluated.

        Args:
            sums: [sequences], the loss's gradient with respect to `CompletionLogps.sums`.
            plain: [sequences], with respect to `CompletionLogps.unweighted_sums`.
            kls: [sequences], with respect to `CompletionLogps.kls`.

        Returns:
            A tree like the model's trainable parameters.
        """
        assert self.terms.logp_grads is not None
        upstream = self.logps.token_grads(sums, plain) * self.terms.logp_grads.astype(mx.float32)
        if kls is not None and self.terms.kl_grads is not None:
            kl_weights = mx.array(kls[self.logps.sequence_indices].astype(np.float32))[:, None]
            upstream = upstream + kl_weights * self.terms.kl_grads.astype(mx.float32)
        np.array(self.upstream_grad, copy=False)[:] = np.array(upstream)  # writes into mlx's own buffer
        # From the last block to the first, in the order of the backward pass: evaluated all at once, mlx keeps much of
        # every block until the end.
        for _, tensors in groupby(reversed(tree_flatten(self.gradients)), key=lambda named: block_prefix(named[0])):
            check_stop()
            mx.eval([tensor for _, tensor in tensors])
        return self.gradients


def _select(hidden: mx.array, completion_mask: np.ndarray) -> mx.array:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if completion_mask.all() else flat[mx.array(np.flatnonzero(completion_mask))]
