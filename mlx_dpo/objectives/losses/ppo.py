"""Proximal policy optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import Opponent, RewardKind, declare_loss
from mlx_dpo.objectives.policy_gradient import (
    clipped_policy_losses,
    clipped_value_losses,
    generalized_advantages,
    token_rewards,
    whiten,
)
from mlx_dpo.objectives.sampled_tokens import SampledRewards, SampledTokens


def ppo_advantages(
    sampled: SampledRewards,
    *,
    kl_coef: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = False,
) -> tuple[mx.array, mx.array]:
    """Advantages by GAE, whitened over all tokens, and the returns for the value head.

    Args:
        sampled: the completions; `sampled.kl_coef` is the coefficient at this time.
        kl_coef: the coefficient at first.
        gamma: discount factor.
        lam: GAE's lambda.
        whiten_rewards: whether rewards, KL penalty included, are scaled to a variance of 1.

    Returns:
        [completions, tokens] advantages, and returns.
    """
    mask = sampled.mask
    rewards = token_rewards(sampled.scores, sampled.logps, sampled.reference_logps, mask, sampled.kl_coef)
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages = generalized_advantages(rewards, sampled.values, mask, gamma, lam)
    return whiten(advantages, mask), mask * (advantages + sampled.values)


def ppo_statistics(
    tokens: SampledTokens, *, cliprange: float, vf_coef: float, cliprange_value: float
) -> dict[str, mx.array]:
    """Metrics by TRL's names, [completions], whose means over the optimizer batch are means over all tokens."""
    ratios, log_ratios = mx.exp(tokens.log_ratios), tokens.log_ratios
    is_clipped = mx.logical_and(mx.abs(ratios - 1) > cliprange, (ratios - 1) * tokens.advantages > 0)
    value_losses = clipped_value_losses(tokens.values, tokens.old_values, tokens.returns, cliprange_value)
    is_value_clipped = value_losses > 0.5 * mx.square(tokens.values - tokens.returns)
    return {
        "loss/policy_avg": tokens.token_mean(clipped_policy_losses(ratios, tokens.advantages, cliprange)),
        "loss/value_avg": tokens.token_mean(value_losses),
        "policy/approxkl_avg": tokens.token_mean(0.5 * mx.square(log_ratios)),
        "policy/clipfrac_avg": tokens.token_mean(is_clipped),
        "val/clipfrac_avg": tokens.token_mean(is_value_clipped),
        "val/ratio": tokens.token_mean(ratios),
    }


@declare_loss(
    rewards=RewardKind.SCORE,
    opponent=Opponent.NONE,
    advantages=ppo_advantages,
    statistics=ppo_statistics,
    needs_value_head=True,
)
def ppo(
    tokens: SampledTokens, *, cliprange: float = 0.2, vf_coef: float = 0.1, cliprange_value: float = 0.2
) -> mx.array:
    """PPO: reinforcement learning on a reward model's or a judge's scores, with a value head and a KL penalty.

    Formula:
        max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange)) + vf_coef 1/2 max((V - R)^2, (clip(V, V_old -
        cliprange_value, V_old + cliprange_value) - R)^2), mean over tokens; r = pi / pi_old of a token, A: whitened
        GAE of its rewards, R = A + V_old before whitening; its rewards are -kl_coef (log pi_old - log pi_ref), plus
        the score at the last token

    Paper:
        1707.06347 Schulman et al., eq. 7; on language models 2009.01325 Stiennon et al., 1909.08593 Ziegler et al.

    When to use:
        A reward model or a function scores answers and new ones should be found by it; the classic RLHF, to compare
        DPO with

    Args:
        tokens: the sampled completions; every array is [completions, tokens].
        cliprange: how far the ratio of new to old probability is followed from 1.
        vf_coef: weight of the value loss.
        cliprange_value: how far a value may move from the old one.

    Returns:
        [completions], the loss of each; their mean over the batch is the mean over all tokens.

    Example:
        >>> ppo(example_tokens(), vf_coef=0.5)
        array([-1.26989, 1.47523], dtype=float32)
    """
    policy_losses = clipped_policy_losses(mx.exp(tokens.log_ratios), tokens.advantages, cliprange)
    value_losses = clipped_value_losses(tokens.values, tokens.old_values, tokens.returns, cliprange_value)
    return tokens.token_mean(policy_losses + vf_coef * value_losses)
