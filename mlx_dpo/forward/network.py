"""A model as it is run here: log-probs of completions, by the least work that this model allows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.data.chat_encoding import TokenIds
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.attention import blockwise_attention
from mlx_dpo.forward.completion_logps import CompletionLogps, CompletionTargets
from mlx_dpo.forward.gradient_checkpointing import feed_forwards, gradient_checkpointing
from mlx_dpo.forward.head import HeadSplit, find_head_split
from mlx_dpo.forward.lora_products import single_product_lora
from mlx_dpo.forward.shared_prefix import completion_hidden_states
from mlx_dpo.forward.token_logps import TokenTerms, token_logps
from mlx_dpo.utils.random_state import random_state

if TYPE_CHECKING:
    from mlx_dpo.distributed.tensor_parallel import TensorParallelism


class PromptSharing(Enum):
    """How many distinct prompts a micro-batch may have for its completions to share them; the values are for people."""

    ANY_PROMPTS = "the prompt once for all its completions"
    ONE_PROMPT = "the prompt once for all its completions, one prompt at a time"
    NONE = "prompt and completion together"


@dataclass(frozen=True)
class Network:
    """A model, where its head begins (None: not found), and whether completions can share a prompt.

    Attributes:
        shards: not None where a rank has but its share of the weights; then all ranks do all of this together, and
            their gradients add up to the whole.
    """

    model: nn.Module
    head_split: HeadSplit | None
    sharing: PromptSharing
    vocab_size: int
    shards: TensorParallelism | None = None

    @classmethod
    def from_model(cls, model: nn.Module, shards: TensorParallelism | None = None) -> Network:
        """Find out what works by trying it on a few short sequences. Raises `UserError` where nothing does."""
        vocabulary = _vocabulary(model)
        plain = cls(model, None, PromptSharing.NONE, vocabulary, shards)
        split = None if _head_is_adapted(model) else find_head_split(model)
        ways = [replace(plain, head_split=split, sharing=sharing) for sharing in PromptSharing] if split else []
        mode = model.training
        model.eval()  # nothing is dropped
        try:
            return next((way for way in ways if plain.min_over_ranks(_agree(way, plain))), plain)
        finally:
            model.train(mode)

    def min_over_ranks(self, value: float) -> float:
        """A value that shapes what is run: the smallest of all ranks', where they run it together."""
        return value if self.shards is None else self.shards.all_min(value)

    @property
    def num_checkpointable(self) -> int:
        """What can be computed again in the backward pass: feed-forwards, then blocks."""
        return len(feed_forwards(self.model)) + len(self.model.layers)

    def logps(
        self, batch: MicroBatch, *, collision_logps: bool = False, reference_hidden_states: mx.array | None = None
    ) -> CompletionLogps:
        """log p of every completion token given what stands before it, end of turn included; evaluated.

        Args:
            collisions, others: whether `alignments` and `kls` are wanted too; see `token_logps`.
        """
        with blockwise_attention(), single_product_lora():
            rows = self._rows(batch)
        return self._logps(batch, rows, slopes=False, collisions=collision_logps, others=reference_hidden_states)[0]

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """What a micro-batch's log-probs are made of, [rows, hidden], evaluated: the `others` of another policy."""
        with blockwise_attention(), single_product_lora():
            rows = self._rows(batch)
        mx.eval(rows)
        return rows

    def trace(
        self,
        batch: MicroBatch,
        num_checkpointed: int = 0,
        *,
        collision_logps: bool = False,
        reference_hidden_states: mx.array | None = None,
    ) -> ForwardTrace:
        """The same as `logps`, with all kept that a gradient needs, so that it costs no second forward pass.

        The gradient is laid out while what it starts from is still a blank, to be filled in once the log-probs are
        known: mlx asks for both at once, and evaluating the head inside its transformation would keep all the logits.

        Args:
            recomputed: how many `parts` of the model keep their inputs only (gradient checkpointing).
        """
        rows, blank, gradients = self._laid_out(batch, num_checkpointed)
        logps, terms = self._logps(batch, rows, slopes=True, collisions=collision_logps, others=reference_hidden_states)
        return ForwardTrace(logps, terms, blank, gradients)

    def activation_bytes(self, batch: MicroBatch, num_checkpointed: int = 0) -> int:
        """Bytes that a forward pass keeps for its backward pass."""
        mx.synchronize()
        mx.clear_cache()  # a larger buffer that is used again counts whole
        before = mx.get_active_memory()
        laid_out = self._laid_out(batch, num_checkpointed)
        mx.synchronize()
        kept = mx.get_active_memory() - before
        del laid_out  # until here it is held
        return int(-self.min_over_ranks(-kept))

    def _laid_out(self, batch: MicroBatch, recomputed: int) -> tuple[mx.array, mx.array, Any]:
        """Hidden rows; a blank, [rows, hidden] float32; and the gradients from what is filled in there, lazily."""
        rows: list[mx.array] = []
        blanks: list[mx.array] = []
        seeds: list[int] = []

        def towards_a_blank() -> mx.array:
            rows.append(self._rows(batch))
            blanks.append(mx.zeros(rows[0].shape))
            seeds.append(random_state())
            return (rows[0] * blanks[0]).sum()

        with gradient_checkpointing(self.model, recomputed), blockwise_attention(), single_product_lora():
            _, gradients = nn.value_and_grad(self.model, towards_a_blank)()
        if self.shards:
            gradients = self.shards.scale_replicated(gradients)
        mx.random.seed(seeds[0])  # blocks that are computed again have gone back to where they were
        mx.eval(rows, blanks)
        return rows[0], blanks[0], gradients

    def _logps(
        self, batch: MicroBatch, rows: mx.array, *, slopes: bool, collisions: bool, others: mx.array | None
    ) -> tuple[CompletionLogps, TokenTerms]:
        places = self._places(batch)
        terms = token_logps(
            rows,
            mx.array(places.token_ids),
            self.logits,
            self.vocab_size,
            gradients=slopes,
            collision_logps=collisions,
            reference_hidden_states=others,
        )
        return CompletionLogps.from_token_terms(batch, places, terms), terms

    def logits(self, hidden_states: mx.array) -> mx.array:
        """[tokens, vocabulary] of hidden rows."""
        return hidden_states if self.head_split is None else self.head_split.logits(hidden_states)

    def _places(self, batch: MicroBatch) -> CompletionTargets:
        """Targets and sequences of the rows of `_rows`."""
        if self.sharing is PromptSharing.NONE:
            whole = batch.padded_sequences
            return CompletionTargets.from_groups([(range(len(whole.targets)), whole.targets, whole.completion_mask)])
        groups = batch.shared_prompts.completion_groups
        return CompletionTargets.from_groups(
            [(group.sequence_indices, group.targets, group.completion_mask) for group in groups]
        )

    def _rows(self, batch: MicroBatch) -> mx.array:
        """Hidden rows of the completions' inputs, [rows, hidden]; where no head was found, their logits."""
        if self.sharing is PromptSharing.NONE:
            whole = batch.padded_sequences
            body = self.model if self.head_split is None else self.head_split.hidden_states
            return _at(body(mx.array(whole.inputs)), whole.completion_mask)
        assert self.head_split is not None
        forked = batch.shared_prompts
        groups = zip(completion_hidden_states(self.head_split, forked), forked.completion_groups, strict=True)
        return mx.concatenate([_at(hidden, group.completion_mask) for hidden, group in groups])


@dataclass(frozen=True)
class ForwardTrace:
    """A micro-batch's forward pass, waiting for its backward pass.

    Attributes:
        terms: what is known of each token, slopes among it.
        blank: [tokens, hidden] float32, what `gradients` takes as the loss's gradient with respect to the hidden rows.
        gradients: of what is trained; lazy.
    """

    logps: CompletionLogps
    terms: TokenTerms
    upstream_grad: mx.array
    gradients: Any

    def gradient(self, sums: np.ndarray, plain: np.ndarray | None = None, kls: np.ndarray | None = None) -> Any:
        """The gradient of a weighted sum over sequences with respect to what is trained, evaluated.

        Args:
            sums, plain, kls: [sequences], weights of what `CompletionLogps` has under these names.
        """
        assert self.terms.logp_grads is not None
        slopes = self.logps.token_grads(sums, plain) * self.terms.logp_grads.astype(mx.float32)
        if kls is not None and self.terms.kl_grads is not None:
            each = mx.array(kls[self.logps.sequence_indices].astype(np.float32))[:, None]
            slopes = slopes + each * self.terms.kl_grads.astype(mx.float32)
        np.array(self.upstream_grad, copy=False)[:] = np.array(slopes)  # a view: fills it in
        # Last block first, as the backward pass goes; asked for all at once, mlx keeps much of every block to the end.
        for _, tensors in groupby(reversed(tree_flatten(self.gradients)), key=lambda named: block_prefix(named[0])):
            mx.eval([tensor for _, tensor in tensors])
        return self.gradients


def block_prefix(name: str) -> str:
    """The part of a tensor's name that its block's other tensors share; empty outside of blocks."""
    match = re.match(r".*?\blayers\.\d+\b", name)
    return match.group() if match else ""


def _head_is_adapted(model: nn.Module) -> bool:
    """Whether an adapter is on a layer outside of the blocks: the head, or what it may be tied to, gets a gradient."""
    inside = {id(module) for layer in model.layers for _, module in layer.named_modules()}
    return any("lora_a" in module and id(module) not in inside for _, module in model.named_modules())


def _vocabulary(model: nn.Module) -> int:
    """How many logits a model gives."""
    try:
        return model(mx.zeros((1, 1), mx.int32)).shape[-1]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"mlx-lm can't run this model as it is adapted: {error}",
            hint="Some layers can't be adapted in some models: name those to adapt with --lora-keys.",
        ) from error


def _at(hidden: mx.array, trained: np.ndarray) -> mx.array:
    rows = hidden.reshape(-1, hidden.shape[-1])
    return rows if trained.all() else rows[mx.array(np.flatnonzero(trained))]


# Prompts of unlike length, one of a single token, two alike; completions of unlike length, one of a single token.
_PROMPTS = [(3, 5, 4, 6, 2, 7, 3), (5, 2, 6), (4,), (5, 2, 6)]
_COMPLETIONS = [(6, 3, 2, 5), (2,), (3, 4), (7, 6, 5, 3, 2)]


def _agree(way: Network, plain: Network) -> bool:
    """Whether a way of running a model gives the plain way's log-probs, up to how much padding alone changes those."""
    sequences = list(zip(_PROMPTS, _COMPLETIONS, strict=True))
    groups = (
        [sequences]
        if way.sharing is PromptSharing.ANY_PROMPTS
        else [[sequences[0]], [sequences[1], sequences[3]], [sequences[2]]]
    )
    try:
        for group in groups:
            expected = _sums(plain, group)
            alone = np.concatenate([_sums(plain, [sequence]) for sequence in group])
            tolerance = 1e-4 + 1e-5 * np.abs(expected).max() + 8 * np.abs(expected - alone).max()
            if not np.abs(_sums(way, group) - expected).max() <= tolerance:
                return False
    except Exception:  # whatever a model's code trips over when it is run in a way it was not written for
        return False
    return True


def _sums(network: Network, sequences: list[tuple[TokenIds, TokenIds]]) -> np.ndarray:
    return network.logps(MicroBatch((), tuple(sequences))).sums
