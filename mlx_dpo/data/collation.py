"""Sequences of token ids as padded arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.encoded_example import TokenIds, TokenMask

MAX_PADDING = 8  # tokens by which completions of a group may differ in length, however short they are


@dataclass(frozen=True)
class PaddedSequences:
    """Each sequence, prompt and completion, as a row padded on the right, which no causal model sees.

    Attributes:
        inputs: [sequences, tokens] int32.
        targets: [sequences, tokens] int32; the token after each input.
        completion_mask: [sequences, tokens] bool; true if the target is a completion token that is trained.
    """

    inputs: np.ndarray
    targets: np.ndarray
    completion_mask: np.ndarray


@dataclass(frozen=True)
class CompletionGroup:
    """Completions of similar length, padded on the right.

    Attributes:
        sequence_indices: the sequence in the micro-batch of each completion.
        prompt_indices: the row of each completion's prompt.
        inputs: [completions, tokens] int32; the first is the last prompt token.
        targets: [completions, tokens] int32; the token after each input.
        completion_mask: [completions, tokens] bool; true if there is a target that is trained.
    """

    sequence_indices: list[int]
    prompt_indices: list[int]
    inputs: np.ndarray
    targets: np.ndarray
    completion_mask: np.ndarray


@dataclass(frozen=True)
class SharedPromptBatch:
    """Distinct prompts without their last token, padded on the left, and the completions that continue them.

    Attributes:
        prompts: [prompts, tokens] int32.
        left_padding: [prompts] int; the number of padded tokens.
        completion_groups: the completions of all sequences.
    """

    prompts: np.ndarray
    left_padding: np.ndarray
    completion_groups: list[CompletionGroup]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.prompts.size + sum(group.inputs.size for group in self.completion_groups)


def collate_sequences(
    sequences: Sequence[tuple[TokenIds, TokenIds]], masks: Sequence[TokenMask] | None = None
) -> PaddedSequences:
    """Collate (prompt, completion) sequences, a row for each.

    Args:
        sequences: the sequences.
        masks: which tokens of each completion are trained; None where all are.
    """
    shape = len(sequences), max(len(prompt) + len(completion) - 1 for prompt, completion in sequences)
    padded = PaddedSequences(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.bool_))
    for row, (prompt, completion) in enumerate(sequences):
        ids = [*prompt, *completion]
        length = len(ids) - 1
        padded.inputs[row, :length] = ids[:-1]
        padded.targets[row, :length] = ids[1:]
        padded.completion_mask[row, len(prompt) - 1 : length] = True if masks is None else masks[row]
    return padded


def collate_shared_prompts(
    sequences: Sequence[tuple[TokenIds, TokenIds]], masks: Sequence[TokenMask] | None = None
) -> SharedPromptBatch:
    """Collate (prompt, completion) sequences, a row for each distinct prompt and for each completion.

    Args:
        sequences: the sequences.
        masks: which tokens of each completion are trained; None where all are.
    """
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in sequences))}
    width = max(map(len, rows)) - 1
    prompts = np.zeros((len(rows), width), np.int32)
    left_padding = np.array([width - (len(prompt) - 1) for prompt in rows])
    for prompt, row in rows.items():
        prompts[row, left_padding[row] :] = prompt[:-1]
    prompt_indices = [rows[prompt] for prompt, _ in sequences]
    groups = [_collate_group(sequences, group, prompt_indices, masks) for group in _group_by_length(sequences)]
    return SharedPromptBatch(prompts, left_padding, groups)


def _group_by_length(sequences: Sequence[tuple[TokenIds, TokenIds]]) -> list[list[int]]:
    """Indices in groups whose completions differ little in length, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i][1]), i)):
        longest = len(sequences[groups[-1][0]][1]) if groups else 0
        if groups and longest - len(sequences[i][1]) <= max(MAX_PADDING, longest // 10):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _collate_group(
    sequences: Sequence[tuple[TokenIds, TokenIds]],
    group: list[int],
    prompt_indices: Sequence[int],
    masks: Sequence[TokenMask] | None,
) -> CompletionGroup:
    shape = len(group), len(sequences[group[0]][1])
    inputs, targets, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    for row, i in enumerate(group):
        prompt, completion = sequences[i]
        inputs[row, : len(completion)] = [prompt[-1], *completion[:-1]]
        targets[row, : len(completion)] = completion
        mask[row, : len(completion)] = True if masks is None else masks[i]
    return CompletionGroup(group, [prompt_indices[i] for i in group], inputs, targets, mask)
