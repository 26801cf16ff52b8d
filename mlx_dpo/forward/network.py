"""Forward passes of a model: log-probs of completions with as little work as the model allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.backend_check import require_usable_backend
from mlx_dpo.forward.completion_logps import CompletionLogps, CompletionTargets, LogpOptions
from mlx_dpo.forward.device import numpy_writes_through, usable_memory
from mlx_dpo.forward.forward_trace import ForwardTrace
from mlx_dpo.forward.gradient_checkpointing import feed_forwards, gradient_checkpointing
from mlx_dpo.forward.head import HeadSplit, find_head_split
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.model_digest import tensor_digests
from mlx_dpo.forward.path_agreement import Sequences, agrees, count_logits, head_is_adapted, remembered
from mlx_dpo.forward.path_cache import PathCache, RunnablePath
from mlx_dpo.forward.shared_prefix import completion_hidden_states
from mlx_dpo.forward.token_logps import TokenTerms, head_chunk_tokens, token_logps
from mlx_dpo.utils.garbage_collection import no_garbage_collection
from mlx_dpo.utils.random_state import random_state

if TYPE_CHECKING:
    from typing import Unpack

    from mlx_dpo.distributed.tensor_parallel import TensorParallelism


class PromptSharing(Enum):
    """How completions share the computation of their prompt; the values are descriptions for display."""

    ANY_PROMPTS = "the prompt once for all its completions"
    ONE_PROMPT = "the prompt once for all its completions, one prompt at a time"
    NONE = "prompt and completion together"


@dataclass(frozen=True)
class Network:
    """An mlx-lm model with the forward path that was chosen for it: the cheapest one that is correct.

    Attributes:
        model: the mlx-lm model.
        head_split: the model as body and head; None if no split was found.
        sharing: how completions share the computation of their prompt.
        vocab_size: number of logits.
        chunk_tokens: tokens whose logits are in memory at a time.
        shards: tensor parallelism; None if this process has all weights. With it, all ranks call every method
            together, and the gradient is the sum over ranks.
        frozen_digests: the `tensor_digest` of frozen tensors, by name, as far as they are known.
        temperature: logits are divided by it, so that log-probs are those of what is sampled at that temperature.
    """

    model: nn.Module
    head_split: HeadSplit | None
    sharing: PromptSharing
    vocab_size: int
    chunk_tokens: int
    shards: TensorParallelism | None = None
    frozen_digests: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 1.0

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        shards: TensorParallelism | None = None,
        memory_limit: int | None = None,
        *,
        use_cache: bool = False,
        on_progress: Callable[[str], None] = lambda text: None,
    ) -> Network:
        """Choose the cheapest forward path whose log-probs agree with the model's own on a few sequences.

        Args:
            model: the mlx-lm model.
            shards: tensor parallelism.
            memory_limit: bytes that may be used in total; None for what the machine allows.
            use_cache: whether to read the choice from disk, and to store it there. Only for a model that was loaded
                from files: the code of a model in memory may have been changed. Ignored with `shards`.
            on_progress: receives a line before each forward pass.

        Raises:
            UserError: mlx can't run the model on this machine, or computes wrong numbers here.
        """
        require_usable_backend()
        vocab_size = count_logits(model)
        chunk_tokens = head_chunk_tokens(vocab_size, memory_limit or usable_memory())
        plain = cls(model, None, PromptSharing.NONE, vocab_size, chunk_tokens, shards)
        split = None if head_is_adapted(model) else find_head_split(model)
        candidates = [replace(plain, head_split=split, sharing=sharing) for sharing in PromptSharing] if split else []
        if not use_cache or shards:
            return plain._first_agreeing(candidates, on_progress)
        digests = tensor_digests(model, {})
        cache = PathCache(model, digests)
        known, ways = cache.read(), {network._path: network for network in [*candidates, plain]}
        network = ways.get(known) if known else None
        if network is None:
            network = plain._first_agreeing(candidates, on_progress)
            cache.write(network._path)
        trainable = trainable_tensors(model)
        return replace(network, frozen_digests={name: text for name, text in digests.items() if name not in trainable})

    @property
    def _path(self) -> RunnablePath:
        return RunnablePath(self.sharing.name, self.head_split is not None)

    def _first_agreeing(self, candidates: Sequence[Network], on_progress: Callable[[str], None]) -> Network:
        """The first candidate that agrees with this plain network; this network if none does."""
        mode, count = self.model.training, itertools.count(1)

        def sums(network: Network, sequences: Sequences) -> np.ndarray:
            on_progress(f"Checking how the model can be run: forward pass {next(count)}")
            return network.logps(MicroBatch((), tuple(sequences))).sums

        plain_sums = remembered(partial(sums, self))
        self.model.eval()  # no dropout
        try:
            for network in candidates:
                several_prompts = network.sharing is PromptSharing.ANY_PROMPTS
                if self.min_over_ranks(agrees(partial(sums, network), plain_sums, several_prompts=several_prompts)):
                    return network
            return self
        finally:
            self.model.train(mode)

    def min_over_ranks(self, value: float) -> float:
        """The smallest value of all ranks under tensor parallelism, for decisions that must agree across ranks."""
        return value if self.shards is None else self.shards.all_min(value)

    @property
    def num_checkpointable(self) -> int:
        """Number of modules that can be checkpointed: feed-forwards, then blocks."""
        return len(feed_forwards(self.model)) + len(self.model.layers)

    def logps(self, batch: MicroBatch, **options: Unpack[LogpOptions]) -> CompletionLogps:
        """Compute the log-prob of every completion token, end of turn included; evaluated.

        Args:
            batch: the micro-batch.
            options: what else to compute.
        """
        return self._logps(batch, self.lazy_hidden_states(batch), gradients=False, **options)[0]

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """Compute the hidden states at the inputs of all completion tokens, [tokens, hidden]; evaluated."""
        hidden_states = self.lazy_hidden_states(batch)
        mx.eval(hidden_states)
        return hidden_states

    def lazy_hidden_states(self, batch: MicroBatch) -> mx.array:
        """`hidden_states`, not evaluated."""
        with patched_mlx():
            return self._hidden_states(batch)

    def trace(self, batch: MicroBatch, num_checkpointed: int = 0, **options: Unpack[LogpOptions]) -> ForwardTrace:
        """Compute log-probs and keep what the backward pass needs.

        The graph of the backward pass is built with a placeholder for the upstream gradient, which is filled in once
        the loss's gradient is known: mlx builds both passes at once, and evaluating the head inside of
        `value_and_grad` would keep all logits in memory. If a placeholder can't be filled in, the forward pass is
        repeated with the gradient in its place.

        Args:
            batch: the micro-batch.
            num_checkpointed: modules that keep only their inputs (gradient checkpointing).
            options: see `logps`.
        """
        seed, can_fill = random_state(), numpy_writes_through()
        if can_fill:
            hidden_states, placeholder, gradients = self._build_backward(batch, num_checkpointed)
        else:
            hidden_states = self.hidden_states(batch)

        def backward(upstream_grad: mx.array) -> Any:
            if can_fill:
                np.array(placeholder, copy=False)[:] = np.array(upstream_grad)  # writes into mlx's own buffer
                return gradients
            mx.random.seed(seed)  # dropout as in the forward pass
            return self._build_backward(batch, num_checkpointed, upstream_grad)[2]

        logps, terms = self._logps(batch, hidden_states, gradients=True, **options)
        return ForwardTrace(logps, terms, backward)

    def activation_bytes(self, batch: MicroBatch, num_checkpointed: int = 0) -> int:
        """Measure the bytes that a forward pass keeps for its backward pass."""
        mx.synchronize()
        mx.clear_cache()  # a cached buffer that is reused would count in full
        with no_garbage_collection():  # nothing else is freed between the two readings
            before = mx.get_active_memory()
            backward = self._build_backward(batch, num_checkpointed)
            mx.synchronize()
            num_bytes = mx.get_active_memory() - before
        del backward  # it holds the activations
        return int(-self.min_over_ranks(-num_bytes))

    def _build_backward(
        self, batch: MicroBatch, num_checkpointed: int, upstream_grad: mx.array | None = None
    ) -> tuple[mx.array, mx.array, Any]:
        """`lazy_backward` with the hidden states and their gradient evaluated."""
        hidden_states, upstream_grad, gradients = self.lazy_backward(batch, num_checkpointed, upstream_grad)
        mx.eval(hidden_states, upstream_grad)
        return hidden_states, upstream_grad, gradients

    def lazy_backward(
        self, batch: MicroBatch, num_checkpointed: int = 0, upstream_grad: mx.array | None = None
    ) -> tuple[mx.array, mx.array, Any]:
        """Build the graph of both passes; nothing is computed.

        Args:
            batch: the micro-batch.
            num_checkpointed: modules that keep only their inputs.
            upstream_grad: [tokens, hidden] float32, the gradient of the hidden states; zeros unless given.

        Returns:
            Hidden states, [tokens, hidden]; their gradient; and from it the gradients of the trainable parameters.
        """
        hidden_states: list[mx.array] = []
        placeholders: list[mx.array] = []
        seeds: list[int] = []

        def product_with_placeholder() -> mx.array:
            hidden_states.append(self._hidden_states(batch))
            placeholders.append(mx.zeros(hidden_states[0].shape) if upstream_grad is None else upstream_grad)
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
        **options: Unpack[LogpOptions],
    ) -> tuple[CompletionLogps, TokenTerms]:
        targets = self._targets(batch)
        terms = token_logps(
            hidden_states,
            mx.array(targets.token_ids),
            self.logits,
            self.chunk_tokens,
            gradients=gradients,
            collision_logps=options.get("collision_logps", False),
            reference_hidden_states=options.get("reference_hidden_states"),
        )
        return CompletionLogps.from_token_terms(batch, targets, terms, options.get("reference_token_logps")), terms

    def logits(self, hidden_states: mx.array) -> mx.array:
        """Logits, [tokens, vocabulary], of hidden states, [tokens, hidden]."""
        logits = hidden_states if self.head_split is None else self.head_split.logits(hidden_states)
        return logits if self.temperature == 1 else logits.astype(mx.float32) / self.temperature

    def _targets(self, batch: MicroBatch) -> CompletionTargets:
        """The completion tokens, in the order of `_hidden_states`."""
        if self.sharing is PromptSharing.NONE:
            padded = batch.padded_sequences
            return CompletionTargets.from_groups([(range(len(padded.targets)), padded.targets, padded.completion_mask)])
        groups = [(g.sequence_indices, g.targets, g.completion_mask) for g in batch.shared_prompts.completion_groups]
        return CompletionTargets.from_groups(groups)

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


def _select(hidden: mx.array, completion_mask: np.ndarray) -> mx.array:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if completion_mask.all() else flat[mx.array(np.flatnonzero(completion_mask))]
