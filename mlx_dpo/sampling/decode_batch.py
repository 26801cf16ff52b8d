"""Sequences that are sampled side by side, a token of each at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.forward.device import runs_on_cpu
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.prompt_caches import LayerCaches, append_rows, keep_rows
from mlx_dpo.sampling.token_sampler import sample_tokens
from mlx_dpo.utils.stop_flag import check_stop

STEPS_BETWEEN_CLEARS = 256  # of mlx's buffer cache: caches grow in steps of as many tokens


@dataclass
class SampledSequence:
    """A completion that is being sampled.

    Attributes:
        prompt: index of its prompt.
        index: among the completions of the prompt.
        last_prompt_token: the first input.
        uniforms: [max_tokens] random numbers.
        token_ids: sampled so far.
        logps: of these tokens, at temperature 1.
        num_launched: tokens that are sampled or being computed.
        has_ended: whether the last of `token_ids` ends it.
    """

    prompt: int
    index: int
    last_prompt_token: int
    uniforms: np.ndarray
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    num_launched: int = 0
    has_ended: bool = False


class DecodeBatch:
    """Sequences side by side. On a GPU the next step is launched before the tokens of the last one are read.

    Args:
        model: the model, in evaluation mode.
        params: how tokens are sampled, and the length limit.
        is_last: whether the last token of a sequence ends it.
    """

    def __init__(self, model: nn.Module, params: SamplingParams, is_last: Callable[[SampledSequence], bool]) -> None:
        self.model, self.params, self.is_last = model, params, is_last
        self.rows: list[SampledSequence] = []
        self._caches: LayerCaches = []
        self._inputs = mx.array([], mx.int32)  # [rows]
        self._unread: deque[tuple[list[SampledSequence], mx.array, mx.array]] = deque()  # rows, tokens, logps
        self._lookahead = 0 if runs_on_cpu() else 1  # steps that are launched and not read
        self._num_steps = 0

    def __bool__(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.rows or self._unread)

    def join(self, caches: LayerCaches, sequences: list[SampledSequence]) -> None:
        """Add sequences.

        Args:
            caches: a batch with a row for each, of its prompt without the last token; owned by this object afterwards.
            sequences: the sequences.
        """
        if self.rows:
            append_rows(self._caches, caches)
        else:
            self._caches = caches
        first = mx.array([sequence.last_prompt_token for sequence in sequences], mx.int32)
        self._inputs = mx.concatenate([self._inputs, first])
        self.rows += sequences

    def step(self) -> list[SampledSequence]:
        """Sample a token for every sequence, and return those that have ended; they have left the batch."""
        check_stop()
        if self.rows:
            self._launch()
            self._keep([row.num_launched < self.params.max_tokens for row in self.rows])
        ended = []
        while len(self._unread) > (self._lookahead if self.rows else 0):
            ended += self._read()
        self._keep([not row.has_ended for row in self.rows])
        return ended

    def _launch(self) -> None:
        logits = self.model(self._inputs[:, None], cache=self._caches)[:, -1]
        uniforms = np.array([row.uniforms[row.num_launched] for row in self.rows], np.float32)
        tokens, logps = sample_tokens(logits, uniforms, self.params)
        mx.async_eval(tokens, logps)
        self._unread.append((list(self.rows), tokens, logps))
        self._inputs = tokens
        for row in self.rows:
            row.num_launched += 1
        self._num_steps += 1
        if self._num_steps % STEPS_BETWEEN_CLEARS == 0:
            mx.clear_cache()

    def _read(self) -> list[SampledSequence]:
        """Take the tokens of the oldest step that was not read; those after the end of a sequence are ignored."""
        rows, tokens, logps = self._unread.popleft()
        ended = []
        for row, token, logp in zip(rows, np.array(tokens), np.array(logps), strict=True):
            if row.has_ended:
                continue
            row.token_ids.append(int(token))
            row.logps.append(float(logp))
            row.has_ended = self.is_last(row)
            if row.has_ended:
                ended.append(row)
        return ended

    def _keep(self, is_kept: list[bool]) -> None:
        if all(is_kept):
            return
        indices = [i for i, keep in enumerate(is_kept) if keep]
        self.rows = [self.rows[i] for i in indices]
        if indices:
            keep_rows(self._caches, indices)
            self._inputs = self._inputs[mx.array(indices)]
        else:
            self._caches, self._inputs = [], mx.array([], mx.int32)
