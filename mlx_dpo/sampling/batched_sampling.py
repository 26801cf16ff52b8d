"""Sample several completions of each of many prompts, side by side.

A prompt goes through the model once, and its caches are then copied for each of its completions. A sequence that ends
leaves the batch, and a waiting one takes its place (continuous batching).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import mlx.nn as nn
import numpy as np

from mlx_dpo.forward.attention import checked_attention
from mlx_dpo.sampling.batch_support import batch_support
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
from mlx_dpo.sampling.decode_batch import DecodeBatch, SampledSequence
from mlx_dpo.sampling.prompt_caches import BatchSupport
from mlx_dpo.sampling.prompt_queue import PromptQueue
from mlx_dpo.sampling.sampling_memory import fitting_batch_size
from mlx_dpo.sampling.stop_texts import StopTexts, text_after
from mlx_dpo.sampling.token_sampler import completion_uniforms

DEFAULT_BATCH_SIZE = 32  # sequences side by side, where they fit in memory


@checked_attention()
def sample_completions(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    n: int = 1,
    prompt_seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[float, float], None] | None = None,
) -> list[list[SampledCompletion]]:
    """Sample completions of prompts.

    The random numbers of a token depend on `params.seed`, the prompt's seed, the number of the completion and the
    position alone: up to the rounding of logits, a completion doesn't depend on what is sampled beside it.

    Args:
        model: the policy, run in place, in evaluation mode.
        tokenizer: its mlx-lm tokenizer.
        prompts: token ids of each prompt, at least one.
        params: temperature, seed and limits.
        n: completions of each prompt.
        prompt_seeds: a seed for each prompt; by default its index.
        batch_size: most sequences side by side; by default as many as fit in memory, and at most 32.
        on_progress: receives the number of completions that have ended, and of all.

    Returns:
        [prompts][n] completions.

    Raises:
        StopRequested: `check_stop` raised it.
    """
    ended: list[SampledSequence] = []
    for step in decode_steps(model, tokenizer, prompts, params, n=n, prompt_seeds=prompt_seeds, batch_size=batch_size):
        if step.ended:
            ended += step.ended
            if on_progress:
                on_progress(len(ended), n * len(prompts))
    ended.sort(key=lambda sequence: (sequence.prompt, sequence.index))
    ends = SequenceEnds(tokenizer, params)
    completions = list(map(ends.completion, ended))
    return [completions[i * n : (i + 1) * n] for i in range(len(prompts))]


class DecodeStep(NamedTuple):
    """The sequences after a step of sampling.

    Attributes:
        running: those that have not ended, each with its tokens so far.
        ended: those that have just ended.
    """

    running: list[SampledSequence]
    ended: list[SampledSequence]


def decode_steps(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    n: int = 1,
    prompt_seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Iterator[DecodeStep]:
    """Sample completions a token of each at a time; arguments are those of `sample_completions`.

    Raises:
        StopRequested: `check_stop` raised it.
    """
    was_training = model.training
    model.eval()
    try:
        seeds = range(len(prompts)) if prompt_seeds is None else prompt_seeds
        support = batch_support(model)
        ends = SequenceEnds(tokenizer, params)

        def make_sequences(prompt: int) -> list[SampledSequence]:
            uniforms = [_uniforms(params, seeds[prompt], completion) for completion in range(n)]
            return [SampledSequence(prompt, i, prompts[prompt][-1], uniforms[i]) for i in range(n)]

        places = (batch_size or _default_batch_size(model, prompts, params)) if support > BatchSupport.SEQUENCE else 1
        queue = PromptQueue(model, prompts, support, make_sequences, max(1, places // n))
        batch = DecodeBatch(model, params, ends.is_last)
        while queue or batch:
            if support >= BatchSupport.MIXED_LENGTHS or not batch:
                for caches, sequences in queue.take(places - len(batch.rows)):
                    batch.join(caches, sequences)
            ended = batch.step()
            yield DecodeStep(batch.rows, ended)
    finally:
        model.train(was_training)


def _default_batch_size(model: nn.Module, prompts: Sequence[Sequence[int]], params: SamplingParams) -> int:
    longest = max(map(len, prompts), default=1)
    return fitting_batch_size(model, longest, params.max_tokens, DEFAULT_BATCH_SIZE)


def _uniforms(params: SamplingParams, prompt_seed: int, completion: int) -> np.ndarray:
    if params.temperature == 0:
        return np.zeros(params.max_tokens, np.float32)
    return completion_uniforms(params.seed, prompt_seed, completion, params.max_tokens)


class SequenceEnds:
    """Where sequences end, and their text up to there.

    Args:
        tokenizer: the mlx-lm tokenizer, which has the end-of-sequence ids.
        params: has the stop texts and the length limit.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        self.tokenizer, self.max_tokens = tokenizer, params.max_tokens
        self.eos_ids = frozenset(tokenizer.eos_token_ids)
        self.stop_texts = StopTexts(tokenizer, params.stop)

    def is_last(self, sequence: SampledSequence) -> bool:
        """Whether the last token of a sequence ends it."""
        return len(sequence.token_ids) >= self.max_tokens or self._is_stopped(sequence)

    def _is_stopped(self, sequence: SampledSequence) -> bool:
        ids = sequence.token_ids
        return ids[-1] in self.eos_ids or self.stop_texts.occur_in(sequence.last_prompt_token, ids)

    def completion(self, sequence: SampledSequence) -> SampledCompletion:
        """What is returned for a sequence that has ended."""
        ids = tuple(sequence.token_ids)
        shown = ids[:-1] if ids[-1] in self.eos_ids else ids
        text = text_after(self.tokenizer, sequence.last_prompt_token, shown)
        reason: Literal["stop", "length"] = "stop" if self._is_stopped(sequence) else "length"
        return SampledCompletion(ids, self.stop_texts.cut(text), reason, tuple(sequence.logps))
