"""Examples that go through the model together, cut from an optimizer batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlx_dpo.data.collation import PaddedSequences, SharedPromptBatch, collate_sequences, collate_shared_prompts
from mlx_dpo.data.encoded_example import EncodedExample, TokenIds, TokenMask, cut_completion
from mlx_dpo.data.examples import Example


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together.

    Attributes:
        batch_indices: their positions in the optimizer batch.
        sequences: (prompt, completion) token ids; of pairs all chosen completions, then all rejected ones.
        examples: the examples as text or messages.
        ld_alpha: LD-DPO's alpha, the weight of tokens after the length of the pair's shorter completion.
        completion_masks: of each sequence, which tokens of the completion are trained; None where all are.
    """

    batch_indices: tuple[int, ...]
    sequences: tuple[tuple[TokenIds, TokenIds], ...]
    examples: tuple[Example, ...] = ()
    ld_alpha: float = 1.0
    completion_masks: tuple[TokenMask, ...] | None = None

    @cached_property
    def padded_sequences(self) -> PaddedSequences:
        """The sequences as padded arrays, collated once."""
        return collate_sequences(self.sequences, self.completion_masks)

    @cached_property
    def shared_prompts(self) -> SharedPromptBatch:
        """Distinct prompts and their completions as padded arrays, collated once."""
        return collate_shared_prompts(self.sequences, self.completion_masks)

    @cached_property
    def last_tokens(self) -> MicroBatch:
        """The sequences with another token after each, the only one that is trained: its input is the last token."""
        sequences = tuple((prompt, (*completion, prompt[-1])) for prompt, completion in self.sequences)
        masks = tuple((*(False for _ in completion), True) for _, completion in self.sequences)
        return MicroBatch(self.batch_indices, sequences, self.examples, completion_masks=masks)

    @property
    def completions_per_example(self) -> int:
        """2 for pairs, 1 for single completions."""
        return len(self.sequences) // len(self.batch_indices)

    @property
    def trained_lengths(self) -> np.ndarray:
        """[sequences] number of tokens of each completion that are trained."""
        if self.completion_masks is None:
            return np.array([len(completion) for _, completion in self.sequences])
        return np.array([sum(mask) for mask in self.completion_masks])

    @property
    def token_weights(self) -> list[np.ndarray] | None:
        """The weight of each trained token, an array for each sequence; None where all are 1."""
        if self.ld_alpha == 1:
            return None
        lengths = self.trained_lengths
        shorter = lengths.reshape(self.completions_per_example, -1).min(axis=0)
        weighted = zip(lengths, np.tile(shorter, self.completions_per_example), strict=True)
        return [np.where(np.arange(length) < limit, 1.0, self.ld_alpha) for length, limit in weighted]

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, prompts counted with each of their completions."""
        return sum(len(prompt) + len(completion) for prompt, completion in self.sequences)


FitsMemory = Callable[[MicroBatch], bool]


def split_into_micro_batches(
    examples: Sequence[EncodedExample], fits_memory: FitsMemory, ld_alpha: float = 1.0
) -> list[MicroBatch]:
    """Cut an optimizer batch into micro-batches of examples with similar lengths.

    Args:
        examples: the optimizer batch.
        fits_memory: whether a micro-batch can be run; each is as large as this allows, and at least one example.
        ld_alpha: LD-DPO's alpha; see `MicroBatch`.
    """

    def sort_key(i: int) -> tuple[int, TokenIds, int, int]:
        prompt = examples[i].prompt
        return len(prompt), prompt, examples[i].num_tokens, i

    micro_batches: list[MicroBatch] = []
    for i in sorted(range(len(examples)), key=sort_key):
        indices = micro_batches[-1].batch_indices if micro_batches else ()
        larger = make_micro_batch(examples, (*indices, i), ld_alpha)
        if indices and fits_memory(larger):
            micro_batches[-1] = larger
        else:
            micro_batches.append(make_micro_batch(examples, (i,), ld_alpha))
    return micro_batches


def make_micro_batch(
    examples: Sequence[EncodedExample], batch_indices: tuple[int, ...], ld_alpha: float = 1.0
) -> MicroBatch:
    """Build the micro-batch of some examples of an optimizer batch.

    Args:
        examples: all examples of the optimizer batch.
        batch_indices: the examples to take, with equal numbers of completions.
        ld_alpha: weight of tokens beyond the length of a pair's shorter completion; 1: equal weights.
    """
    selected = [examples[i] for i in batch_indices]
    by_side = zip(*(example.completions for example in selected), strict=True)
    sequences = [
        (example.prompt, completion)
        for completions in by_side
        for example, completion in zip(selected, completions, strict=True)
    ]
    masks = None
    if any(example.completion_masks is not None for example in selected):
        masks = tuple(example.mask(i) for i in range(len(selected[0].completions)) for example in selected)
    return MicroBatch(batch_indices, tuple(sequences), tuple(encoded.example for encoded in selected), ld_alpha, masks)


def mismatched_example(
    prompt_source: EncodedExample, completion_source: EncodedExample, max_length: int
) -> EncodedExample:
    """Combine a prompt with the completions of another example, on which KTO estimates the KL.

    Args:
        prompt_source: the example whose prompt is used.
        completion_source: the example whose completions are used.
        max_length: tokens to which prompt and completion are truncated together.
    """
    limit, masks = max(1, max_length - len(prompt_source.prompt)), completion_source.completion_masks
    cut = [
        cut_completion(ids, None if masks is None else masks[i], limit)
        for i, ids in enumerate(completion_source.completions)
    ]
    return replace(
        prompt_source,
        completions=tuple(ids for ids, _ in cut),
        completion_masks=masks and tuple(mask or () for _, mask in cut),
    )
