"""Prompts that wait to be run, and sequences whose prompt was run and that wait for a place in the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.nn as nn

from mlx_dpo.sampling.decode_batch import SampledSequence
from mlx_dpo.sampling.prompt_caches import BatchSupport, LayerCaches, prefill, select_rows

MAX_PREFILL_TOKENS = 2048  # of prompts that are run together
MAX_PADDING_SHARE = 0.1  # of these tokens


@dataclass
class _PrefilledPrompts:
    """Prompts that were run together, with the sequences that wait and the row of each one's prompt."""

    caches: LayerCaches
    waiting: deque[tuple[int, SampledSequence]]


class PromptQueue:
    """Runs prompts as places become free, the longest first: they are beside prompts of like length then.

    Args:
        model: the model, in evaluation mode.
        prompts: token ids of each prompt.
        support: of the model.
        make_sequences: the sequences of a prompt, from its index.
        max_prompts: most prompts to run together.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        support: BatchSupport,
        make_sequences: Callable[[int], list[SampledSequence]],
        max_prompts: int,
    ) -> None:
        self.model, self.prompts, self.support, self.make_sequences = model, prompts, support, make_sequences
        self.max_prompts = max_prompts if support is BatchSupport.PADDED_PROMPTS else 1
        self._not_run = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self._prefilled: _PrefilledPrompts | None = None

    def __bool__(self) -> bool:
        """Whether a sequence waits."""
        return bool(self._not_run or self._prefilled)

    def take(self, places: int) -> Iterator[tuple[LayerCaches, list[SampledSequence]]]:
        """Yield caches with a row for each sequence, and the sequences, until all places are taken or none waits.

        Args:
            places: free in the batch; all of it if `support` is less than `MIXED_LENGTHS`, and then only sequences of
                one prompt are taken.
        """
        while places > 0 and self:
            prefilled = self._prefilled or self._run_next()
            count = min(places, len(prefilled.waiting))
            rows, sequences = zip(*(prefilled.waiting.popleft() for _ in range(count)), strict=True)
            self._prefilled = prefilled if prefilled.waiting else None
            yield select_rows(prefilled.caches, rows), list(sequences)
            places -= count if self.support >= BatchSupport.MIXED_LENGTHS else places

    def _run_next(self) -> _PrefilledPrompts:
        indices = [self._not_run.popleft()]
        while self._not_run and self._fits(indices, self._not_run[0]):
            indices.append(self._not_run.popleft())
        caches = prefill(self.model, [self.prompts[i] for i in indices], self.support)
        waiting = ((row, sequence) for row, i in enumerate(indices) for sequence in self.make_sequences(i))
        return _PrefilledPrompts(caches, deque(waiting))

    def _fits(self, indices: list[int], another: int) -> bool:
        """Whether another prompt, which is not longer, may be run with these."""
        lengths = [len(self.prompts[i]) for i in (*indices, another)]
        tokens = lengths[0] * len(lengths)
        is_small = tokens <= MAX_PREFILL_TOKENS and len(lengths) <= self.max_prompts
        return is_small and tokens - sum(lengths) <= MAX_PADDING_SHARE * tokens
