"""Completions of one prompt while they are sampled, for a person who reads along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.nn as nn

from mlx_dpo.sampling.batched_sampling import SequenceEnds, decode_steps
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.stop_texts import text_after


@dataclass(frozen=True)
class PartialCompletion:
    """A completion so far.

    Attributes:
        index: among the completions of the prompt.
        text: without a last character of which only some tokens are sampled.
        num_tokens: sampled so far.
        finish_reason: None while it is being sampled, else as in `SampledCompletion`.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


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
