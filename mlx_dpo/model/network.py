"""A model as it is run here: log-probs of completions, by the least work that this model allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.batches import Ids, MicroBatch, collate_forked, collate_whole
from mlx_dpo.model.head import Split, find_split
from mlx_dpo.model.shared_prefix import completion_rows
from mlx_dpo.model.token_logps import log_softmax_at, token_logps

Part = tuple[Sequence[int], np.ndarray, np.ndarray]  # which sequences, their targets, and where those are


class Sharing(Enum):
    """How many distinct prompts a micro-batch may have for its completions to share them; the values are for people."""

    ANY = "the prompt once for all its completions"
    ONE = "the prompt once for all its completions, one prompt at a time"
    NONE = "prompt and completion together"


@dataclass(frozen=True)
class Network:
    """A model, where its head begins (None: not found), and whether completions can share a prompt."""

    model: nn.Module
    split: Split | None
    sharing: Sharing
    vocabulary: int

    @classmethod
    def of(cls, model: nn.Module) -> Network:
        """Find out what works by trying it on a few short sequences."""
        vocabulary = model(mx.zeros((1, 1), mx.int32)).shape[-1]
        plain = cls(model, None, Sharing.NONE, vocabulary)
        split = find_split(model)
        ways = [replace(plain, split=split, sharing=sharing) for sharing in Sharing] if split else []
        mode = model.training
        model.eval()  # nothing is dropped
        try:
            return next((way for way in ways if _agree(way, plain)), plain)
        finally:
            model.train(mode)

    def completion_logps(self, batch: MicroBatch, gradient: bool) -> mx.array:
        """log p of every completion token given what stands before it, end of turn included; 0 where there is none.

        Args:
            gradient: whether it will be differentiated.

        Returns:
            [sequences, tokens], float32, nats.
        """
        if self.split is None:
            return self._by_logits(batch.sequences)
        if self.sharing is Sharing.NONE:
            whole = collate_whole(batch.sequences)
            hidden = self.split.hidden(mx.array(whole.inputs))
            return self._at([hidden], [(range(len(hidden)), whole.targets, whole.trained)], gradient)
        forked = collate_forked(batch.sequences)
        parts = [(group.sequences, group.targets, group.trained) for group in forked.completions]
        return self._at(completion_rows(self.split, forked), parts, gradient)

    def _by_logits(self, sequences: Sequence[tuple[Ids, Ids]]) -> mx.array:
        whole = collate_whole(sequences)
        start = slice(whole.first_target, None)
        logits = self.model(mx.array(whole.inputs))[:, start]
        # where, not a product: a padded position's log-prob may be infinite, and 0 * inf is not a number
        return mx.where(mx.array(whole.trained[:, start]), log_softmax_at(logits, mx.array(whole.targets[:, start])), 0)

    def _at(self, hidden: list[mx.array], parts: Sequence[Part], gradient: bool) -> mx.array:
        """Log-probs at the trained positions only, in their places, from hidden rows in parts."""
        assert self.split is not None
        rows, targets, places = [], [], []
        width = max(part[1].shape[1] for part in parts)
        for one, (sequences, wanted, trained) in zip(hidden, parts, strict=True):
            at = np.flatnonzero(trained)
            rows.append(one.reshape(-1, one.shape[-1])[mx.array(at)])
            targets.append(wanted.reshape(-1)[at])
            row, column = np.divmod(at, trained.shape[1])
            places.append(np.array(sequences)[row] * width + column)
        logps = token_logps(
            mx.concatenate(rows), mx.array(np.concatenate(targets)), self.split.logits, self.vocabulary, gradient
        )
        full = mx.zeros(width * sum(len(part[0]) for part in parts))
        full[mx.array(np.concatenate(places))] = logps
        return full.reshape(-1, width)


# Prompts of unlike length, one of a single token, two alike; completions of unlike length, one of a single token.
_PROMPTS = [(3, 5, 4, 6, 2, 7, 3), (5, 2, 6), (4,), (5, 2, 6)]
_COMPLETIONS = [(6, 3, 2, 5), (2,), (3, 4), (7, 6, 5, 3, 2)]


def _agree(way: Network, plain: Network) -> bool:
    """Whether a way of running a model gives the plain way's log-probs, up to how much padding alone changes those."""
    sequences = list(zip(_PROMPTS, _COMPLETIONS, strict=True))
    groups = (
        [sequences] if way.sharing is Sharing.ANY else [[sequences[0]], [sequences[1], sequences[3]], [sequences[2]]]
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


def _sums(network: Network, sequences: list[tuple[Ids, Ids]]) -> np.ndarray:
    return np.array(network.completion_logps(MicroBatch((), tuple(sequences)), gradient=False).sum(axis=1))
