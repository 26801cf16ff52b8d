"""Pairs as long as on-policy training may make them, to plan a run without sampling or judging."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.optimizer_batch import IndexedExample
from mlx_dpo.reference.reference_policy import ReferenceLogps
from mlx_dpo.training.batch_source import BatchSource
from mlx_dpo.training.on_policy.prompt_stream import PromptStream


class PlannedRollouts(BatchSource):
    """Gives every prompt completions of the greatest length."""

    digest = "planned rollouts"

    def __init__(
        self,
        prompts: PromptStream,
        reference: ReferenceLogps,
        batch_size: int,
        max_tokens: int,
        planned_example: Example | None = None,
    ) -> None:
        """Make a source.

        Args:
            prompts: the prompts.
            reference: table of the reference's log-probs, in which made-up ones are entered.
            batch_size: prompts of an optimizer batch.
            max_tokens: length of the completions.
            planned_example: what each completion is, if it is an example of its own; by default pairs, or completions.
        """
        self.planned_example = planned_example
        self.prompts, self.reference, self.batch_size, self.max_tokens = prompts, reference, batch_size, max_tokens
        self.steps_per_epoch = -(-len(prompts) // batch_size)

    def batch(self, step: int) -> Sequence[IndexedExample]:
        """Return the examples of a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        self.reference.fill(positions, np.zeros((self.batch_size, self.reference.completions_per_example)))
        where = Where("planned answer")
        return [IndexedExample(i, where, partial(self._encoded, i)) for i in positions.tolist()]

    def _encoded(self, position: int) -> EncodedExample:
        prompt = self.prompts.token_ids(self.prompts.index(position))
        count = self.reference.completions_per_example
        example = self.planned_example or (Pair("", "", "") if count == 2 else Completion("", ""))
        return EncodedExample(prompt, ((prompt[0],) * self.max_tokens,) * count, example)
