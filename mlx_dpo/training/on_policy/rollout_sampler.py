"""Samples the completions of prompts: from the policy, and for some losses from another one to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import mlx.nn as nn

from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.reference.reference_policy import ReferencePolicy, SharedNetworkReference
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
from mlx_dpo.training.on_policy.mixture_model import MixtureModel
from mlx_dpo.training.on_policy.rollout import RolloutCompletion


class RolloutSampler:
    """Samples from the model that is trained, in place and without dropout.

    Attributes:
        model: the model.
        num_completions: completions of a prompt.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        reference: ReferencePolicy,
        params: SamplingParams,
        num_completions: int,
        opponent: Opponent = Opponent.POLICY,
        mixture_coef: float = 0.5,
    ) -> None:
        """Make a sampler.

        Args:
            model: the model that is trained.
            tokenizer: its mlx-lm tokenizer.
            reference: the reference.
            params: temperature, limits and the run's seed.
            num_completions: completions of a prompt; with an opponent 2, the policy's and the opponent's.
            opponent: who writes the last completion.
            mixture_coef: weight of the reference, if the opponent is a mixture.
        """
        self.model, self.tokenizer, self.reference, self.params = model, tokenizer, reference, params
        self.num_completions, self.opponent = num_completions, opponent
        is_mixture = opponent is Opponent.MIXTURE
        self._opponent_model = MixtureModel(model, lambda: self._shared.tensors, mixture_coef) if is_mixture else model

    @property
    def _shared(self) -> SharedNetworkReference:
        assert isinstance(self.reference, SharedNetworkReference), "checked before the model is loaded"
        return self.reference

    def sample(self, positions: Sequence[int], prompts: Sequence[TokenIds]) -> list[tuple[RolloutCompletion, ...]]:
        """Sample completions. They depend on the run's seed, the policy and a prompt's position alone.

        Args:
            positions: [prompts] of the prompts in the stream.
            prompts: [prompts] token ids.

        Returns:
            [prompts] the completions of each.
        """
        if not prompts:
            return []
        seeds = [2 * position for position in positions]  # the odd ones are the opponent's
        if self.opponent is Opponent.POLICY:
            sampled = self._sample(self.model, prompts, seeds, self.num_completions)
            return [tuple(_policy_completion(item) for item in items) for items in sampled]
        own = self._sample(self.model, prompts, seeds, 1)
        is_reference = self.opponent is Opponent.REFERENCE
        with swap_adapter(self.model, self._shared.tensors) if is_reference else nullcontext():
            opponents = self._sample(self._opponent_model, prompts, [seed + 1 for seed in seeds], 1)
        return [(_policy_completion(a), _opponent_completion(b)) for (a,), (b,) in zip(own, opponents, strict=True)]

    def _sample(
        self, model: nn.Module, prompts: Sequence[TokenIds], seeds: Sequence[int], count: int
    ) -> list[list[SampledCompletion]]:
        return sample_completions(model, self.tokenizer, prompts, self.params, n=count, prompt_seeds=seeds)


def _policy_completion(item: SampledCompletion) -> RolloutCompletion:
    return RolloutCompletion(item.token_ids, item.text, item.finish_reason, float(sum(item.logps)))


def _opponent_completion(item: SampledCompletion) -> RolloutCompletion:
    return RolloutCompletion(item.token_ids, item.text, item.finish_reason)
