"""A model as it is run here: log-probs of completions, by the least work that this model allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.batches import Ids, MicroBatch, collate_forked, collate_whole
from mlx_dpo.errors import UserError
from mlx_dpo.model.head import Split, find_split
from mlx_dpo.model.shared_prefix import completion_rows
from mlx_dpo.model.token_logps import token_logps


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
        """Find out what works by trying it on a few short sequences. Raises `UserError` where nothing does."""
        vocabulary = _vocabulary(model)
        plain = cls(model, None, Sharing.NONE, vocabulary)
        split = find_split(model)
        ways = [replace(plain, split=split, sharing=sharing) for sharing in Sharing] if split else []
        mode = model.training
        model.eval()  # nothing is dropped
        try:
            return next((way for way in ways if _agree(way, plain)), plain)
        finally:
            model.train(mode)

    def logps(self, batch: MicroBatch, *, slopes: bool = False) -> CompletionLogps:
        """log p of every completion token given what stands before it, end of turn included; evaluated.

        Args:
            slopes: whether `gradient` will be asked for; this costs one more product with the vocabulary.
        """
        places = self._places(batch)
        rows = self._rows(batch)
        targets = mx.array(places.targets)
        logps, slope = token_logps(rows, targets, self._logits, self.vocabulary, slopes=slopes)
        return CompletionLogps(np.array(logps), places.sequences, len(batch.sequences), slope)

    def gradient(self, batch: MicroBatch, logps: CompletionLogps, weights: np.ndarray) -> Any:
        """The gradient of sum(weights * sequence log-probs) with respect to what is trained, lazily.

        The body is run once more, under the same trained tensors and random state; the head is not.

        Args:
            logps: what `logps(batch, slopes=True)` gave.
            weights: [sequences].
        """
        assert logps.slopes is not None
        each = mx.array(weights[logps.sequences].astype(np.float32))[:, None]
        cotangent = (each * logps.slopes).astype(logps.slopes.dtype)
        _, gradients = nn.value_and_grad(self.model, lambda: (self._rows(batch) * cotangent).sum())()
        return gradients

    def _logits(self, rows: mx.array) -> mx.array:
        return rows if self.split is None else self.split.logits(rows)

    def _places(self, batch: MicroBatch) -> Places:
        """Targets and sequences of the rows of `_rows`."""
        if self.sharing is Sharing.NONE:
            whole = collate_whole(batch.sequences)
            return Places.of([(range(len(whole.targets)), whole.targets, whole.trained)])
        groups = collate_forked(batch.sequences).completions
        return Places.of([(group.sequences, group.targets, group.trained) for group in groups])

    def _rows(self, batch: MicroBatch) -> mx.array:
        """Hidden rows of the completions' inputs, [rows, hidden]; where no head was found, their logits."""
        if self.sharing is Sharing.NONE:
            whole = collate_whole(batch.sequences)
            body = self.model if self.split is None else self.split.hidden
            return _at(body(mx.array(whole.inputs)), whole.trained)
        assert self.split is not None
        forked = collate_forked(batch.sequences)
        groups = zip(completion_rows(self.split, forked), forked.completions, strict=True)
        return mx.concatenate([_at(hidden, group.trained) for hidden, group in groups])


@dataclass(frozen=True)
class CompletionLogps:
    """Log-probs of a micro-batch's completion tokens, one after the other.

    Attributes:
        tokens: [tokens], float32, nats.
        sequences: [tokens], which sequence each belongs to.
        count: sequences in all.
        slopes: [tokens, hidden], the gradient of each with respect to its hidden row, where asked for.
    """

    tokens: np.ndarray
    sequences: np.ndarray
    count: int
    slopes: mx.array | None

    @property
    def sums(self) -> np.ndarray:
        """log p(completion | prompt) of each sequence, [sequences], summed in float64.

        Rewards are small differences of large sums: at 300 nats the step between float32 numbers is 3e-5.
        """
        return np.bincount(self.sequences, self.tokens.astype(np.float64), minlength=self.count)


@dataclass(frozen=True)
class Places:
    """Of each trained position: its target, and which sequence it belongs to."""

    targets: np.ndarray
    sequences: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]]) -> Places:
        """From parts of (sequences, targets, where targets are)."""
        targets = [wanted[trained] for _, wanted, trained in parts]
        sequences = [np.array(which)[np.nonzero(trained)[0]] for which, _, trained in parts]
        return cls(np.concatenate(targets), np.concatenate(sequences))


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
    return hidden.reshape(-1, hidden.shape[-1])[mx.array(np.flatnonzero(trained))]


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
    return network.logps(MicroBatch((), tuple(sequences))).sums
