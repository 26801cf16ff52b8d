"""Inputs of a policy gradient: sampled completions, token by token, before their advantages are known and after."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class SampledRewards:
    """Completions that the policy has sampled, with their scores. Arrays are float32, padded at the end.

    Attributes:
        scores: [completions], of a reward model or a judge; those of a prompt's completions are next to each other.
        logps: [completions, tokens] nats, under the policy that sampled them.
        reference_logps: [completions, tokens] nats; equal to `logps` without a reference.
        values: [completions, tokens] V(s_t) of the value head; 0 without one.
        mask: [completions, tokens], 1 at tokens of a completion.
        completions_per_prompt: k.
        kl_coef: weight of the KL penalty at this time; the loss's setting, unless that is adapted.
    """

    scores: mx.array
    logps: mx.array
    reference_logps: mx.array
    values: mx.array
    mask: mx.array
    completions_per_prompt: int
    kl_coef: float


@dataclass(frozen=True)
class SampledTokens:
    """Sampled completions, to be trained on. Arrays are [completions, tokens] float32, padded at the end.

    Attributes:
        logps: log pi(a_t|s_t) of the policy as it is, nats; the gradient is taken with respect to them.
        values: V(s_t) of the value head as it is, likewise; 0 without one.
        old_logps: those when the completions were sampled.
        old_values: those when the completions were sampled.
        advantages: of the tokens; where an action is a whole completion, all of its tokens have the same.
        returns: what the values should be.
        mask: 1 at tokens of a completion.
        mean_tokens: mean length of the completions of the whole optimizer batch, of which these may be a part. A sum
            over a completion's tokens divided by it has, as its mean over completions, the mean over all tokens.
    """

    logps: mx.array
    values: mx.array
    old_logps: mx.array
    old_values: mx.array
    advantages: mx.array
    returns: mx.array
    mask: mx.array
    mean_tokens: float

    def token_mean(self, values: mx.array) -> mx.array:
        """[completions], whose mean over the optimizer batch is the mean of `values` over all tokens."""
        return (self.mask * values).sum(axis=1) / self.mean_tokens

    @property
    def log_ratios(self) -> mx.array:
        """[completions, tokens] log pi - log pi_old, 0 at padding."""
        return self.mask * (self.logps - self.old_logps)

    @property
    def completion_log_ratios(self) -> mx.array:
        """[completions] log pi - log pi_old, summed over tokens."""
        return self.log_ratios.sum(axis=1)

    @property
    def completion_advantages(self) -> mx.array:
        """[completions], where all tokens of a completion have the same advantage."""
        return self.advantages[:, 0]


def example_tokens(mean_tokens: float = 1.5) -> SampledTokens:
    """Two made-up completions of two tokens and one, for the docstrings' examples."""
    mask = mx.array([[1.0, 1.0], [1.0, 0.0]])
    old = mx.array([[-1.0, -2.0], [-0.5, 0.0]])
    return SampledTokens(
        logps=mask * (old + mx.array([[0.5, -0.1], [0.1, 0.0]])),
        values=mx.array([[0.2, 0.6], [0.1, 0.0]]),
        old_logps=old,
        old_values=mx.array([[0.0, 0.5], [0.1, 0.0]]),
        advantages=mx.array([[1.0, 1.0], [-2.0, 0.0]]),
        returns=mx.array([[1.0, 1.0], [0.0, 0.0]]),
        mask=mask,
        mean_tokens=mean_tokens,
    )
