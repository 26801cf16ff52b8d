"""Completions of one prompt while they are sampled, for a person who reads along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.nn as nn

from mlx_dpo.sampling.batched_sampling import SequenceEnds, decode_steps
from mlx_dpo.sampling.completions import PartialCompletion, SamplingParams
from mlx_dpo.sampling.stop_texts import text_after


def stream_completions(
    model: nn.Module, tokenizer: Any, prompt: Sequence[int], params: SamplingParams, *, n: int = 1
) -> Iterator[list[PartialCompletion]]:
    """Sample completions of a prompt, and yield after each token of them those that have changed.

    Their tokens are those of `sample_completions` with the same seed.

    Args:
        model: the policy.
        tokenizer: its mlx-lm tokenizer.
        prompt: token ids.
        params: temperature, seed and limits.
        n: completions.
    """
    ends = SequenceEnds(tokenizer, params)
    for step in decode_steps(model, tokenizer, [prompt], params, n=n):
        partial = [
            PartialCompletion(
                sequence.index,
                ends.stop_texts.cut(text_after(tokenizer, prompt[-1], sequence.token_ids)).rstrip("�"),
                len(sequence.token_ids),
            )
            for sequence in step.running
            if sequence.token_ids
        ]
        for sequence in step.ended:
            completion = ends.completion(sequence)
            partial.append(
                PartialCompletion(sequence.index, completion.text, len(sequence.token_ids), completion.finish_reason)
            )
        yield partial
