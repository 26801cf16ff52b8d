"""The geometric mixture of policy and reference, as a model that completions can be sampled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import swap_adapter


class MixtureModel(nn.Module):
    """A model with the logits (1 - coef) * policy + coef * reference, both of them the same model under two adapters.

    Its distribution is that of Nash-MD's mixture policy, pi^(1 - coef) * pi_ref^coef up to a factor (Munos et al. 2023,
    arXiv 2312.00886, eq. 5). It has no weights of its own, and caches of both policies.
    """

    def __init__(self, model: nn.Module, reference: Callable[[], Tensors], coef: float) -> None:
        """Make a mixture.

        Args:
            model: the policy's model.
            reference: returns the reference's values of the trained tensors.
            coef: weight of the reference, from 0 to 1.
        """
        super().__init__()
        self.model, self.coef = model, coef
        self._reference = reference

    def make_cache(self) -> list[Any]:
        """Return empty caches: those of the policy's layers, then those of the reference's."""
        from mlx_lm.models.cache import make_prompt_cache

        return [*make_prompt_cache(self.model), *make_prompt_cache(self.model)]

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Compute logits, [sequences, tokens, vocabulary] float32.

        Args:
            tokens: [sequences, tokens] token ids.
            cache: the caches of both.
        """
        middle = len(cache) // 2
        policy = self.model(tokens, cache=cache[:middle]).astype(mx.float32)
        with swap_adapter(self.model, self._reference()):
            reference = self.model(tokens, cache=cache[middle:]).astype(mx.float32)
        return (1 - self.coef) * policy + self.coef * reference
