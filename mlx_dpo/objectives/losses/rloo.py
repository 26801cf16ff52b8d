"""REINFORCE leave-one-out."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import Opponent, RewardKind, declare_loss
from mlx_dpo.objectives.policy_gradient import clipped_policy_losses, leave_one_out_advantages
from mlx_dpo.objectives.sampled_tokens import SampledRewards, SampledTokens


def rloo_advantages(sampled: SampledRewards, *, kl_coef: float = 0.05) -> tuple[mx.array, mx.array]:
    """Leave-one-out advantages of whole completions, the KL penalty in their reward.

    Args:
        sampled: the completions; `sampled.kl_coef` is the coefficient at this time.
        kl_coef: the coefficient at first.

    Returns:
        [completions, tokens] advantages, equal for all tokens of a completion; and zeros, as there are no values.
    """
    kls = (sampled.mask * (sampled.logps - sampled.reference_logps)).sum(axis=1)
    rewards = (sampled.scores - sampled.kl_coef * kls).reshape(-1, sampled.completions_per_prompt)
    advantages = leave_one_out_advantages(rewards).reshape(-1, 1)
    return advantages * sampled.mask, mx.zeros_like(sampled.mask)


def rloo_statistics(tokens: SampledTokens, *, cliprange: float) -> dict[str, mx.array]:
    """Metrics by TRL's names, [completions]; an action is a whole completion."""
    ratios = mx.exp(tokens.completion_log_ratios)
    is_clipped = mx.logical_and(mx.abs(ratios - 1) > cliprange, (ratios - 1) * tokens.completion_advantages > 0)
    return {
        "loss/policy_avg": clipped_policy_losses(ratios, tokens.completion_advantages, cliprange),
        "policy/approxkl_avg": 0.5 * mx.square(tokens.completion_log_ratios),
        "policy/clipfrac_avg": is_clipped.astype(mx.float32),
        "val/ratio": ratios,
    }


@declare_loss(rewards=RewardKind.SCORE, opponent=Opponent.NONE, advantages=rloo_advantages, statistics=rloo_statistics)
def rloo(tokens: SampledTokens, *, cliprange: float = 0.2) -> mx.array:
    """RLOO: policy gradient on scores, each compared with those of the same prompt's other answers; no value head.

    Formula:
        max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange)); r = pi / pi_old of a whole completion, A = its reward less
        the mean reward of the prompt's other completions; reward = score - kl_coef (log pi_old - log pi_ref)

    Paper:
        2402.14740 Ahmadian et al., eq. 9 (Kool et al. 2019)

    When to use:
        As PPO, with less to tune and less memory: several answers to each prompt take the place of the value head

    Args:
        tokens: the sampled completions; every array is [completions, tokens].
        cliprange: how far the ratio of new to old probability is followed from 1.

    Returns:
        [completions], the loss of each.

    Example:
        >>> rloo(example_tokens())
        array([-1.2, 2.21034], dtype=float32)
    """
    return clipped_policy_losses(mx.exp(tokens.completion_log_ratios), tokens.completion_advantages, cliprange)
