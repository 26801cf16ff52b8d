"""The mathematics of PPO and RLOO: rewards of tokens, advantages, and clipped losses. Pure functions of mlx arrays.

Arrays are [completions, tokens] float32, padded at the end; `mask` is 1 at tokens of a completion and 0 at padding. A
state is a prompt with the tokens before one of a completion, and the action is that token.

Papers: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2015 (GAE, 1506.02438), Ziegler et al. 2019
(1909.08593), Stiennon et al. 2020 (2009.01325), Ahmadian et al. 2024 (RLOO, 2402.14740).
"""

from __future__ import annotations

import mlx.core as mx

WHITENING_EPSILON = 1e-8  # added to the variance, as in TRL
MAX_KL_ERROR = 0.2  # the relative error of the KL is cut to this in both directions (Ziegler et al.)


def token_rewards(
    scores: mx.array, logps: mx.array, reference_logps: mx.array, mask: mx.array, kl_coef: float
) -> mx.array:
    """Rewards of tokens: the KL penalty at each, and the score of the completion at its last one.

    Formula:
        r_t = -kl_coef (log pi(a_t|s_t) - log pi_ref(a_t|s_t)) + [t is the last token] score

    The bracket is the estimator k1 of KL(pi || pi_ref). Ziegler et al. 2019, eq. 2; Stiennon et al. 2020, section 3.4.

    Args:
        scores: [completions], of a reward model or a judge; NaN where there is none and the mask is 0.
        logps: [completions, tokens] nats, of the policy that sampled them.
        reference_logps: [completions, tokens] nats.
        mask: [completions, tokens].
        kl_coef: weight of the KL.

    Returns:
        [completions, tokens], 0 at padding.
    """
    positions = mx.arange(mask.shape[1])[None]
    is_last = positions == (mask.sum(axis=1, keepdims=True).astype(mx.int32) - 1)
    scores = mx.where(mask.any(axis=1), scores, 0.0)
    return mask * (is_last * scores[:, None] - kl_coef * (logps - reference_logps))


def whiten(values: mx.array, mask: mx.array, *, shift_mean: bool = True) -> mx.array:
    """Scale values to a variance of 1 over all tokens, and shift their mean to 0; TRL's `masked_whiten`.

    The variance is the unbiased one, divided by the number of tokens less one.

    Args:
        values: [completions, tokens].
        mask: [completions, tokens].
        shift_mean: whether the mean becomes 0; if not, it stays as it was.

    Returns:
        [completions, tokens], 0 at padding.
    """
    count = mask.sum()
    mean = (mask * values).sum() / count
    variance = (mask * mx.square(values - mean)).sum() / mx.maximum(count - 1, 1)
    whitened = (values - mean) * mx.rsqrt(variance + WHITENING_EPSILON)
    return mask * (whitened if shift_mean else whitened + mean)


def generalized_advantages(rewards: mx.array, values: mx.array, mask: mx.array, gamma: float, lam: float) -> mx.array:
    """Generalized advantage estimates; Schulman et al. 2015, eqs. 11 to 16.

    Formula:
        A_t = sum over l of (gamma lam)^l delta_(t+l), delta_t = r_t + gamma V(s_(t+1)) - V(s_t)

    The value after a completion's last token is 0. The returns that the value head learns are A_t + V(s_t).

    Args:
        rewards: [completions, tokens], 0 at padding.
        values: [completions, tokens] V(s_t), before each token.
        mask: [completions, tokens].
        gamma: discount factor.
        lam: weight of longer estimates: 0 is one step of temporal difference, 1 the sum of all rewards.

    Returns:
        [completions, tokens], 0 at padding.
    """
    values, advantage = values * mask, mx.zeros(mask.shape[0])
    next_values = mx.concatenate([values[:, 1:], mx.zeros((mask.shape[0], 1))], axis=1)
    deltas = mask * (rewards + gamma * next_values - values)
    advantages = []
    for t in reversed(range(mask.shape[1])):
        advantage = deltas[:, t] + gamma * lam * advantage
        advantages.append(advantage)
    return mx.stack(advantages[::-1], axis=1) * mask


def leave_one_out_advantages(rewards: mx.array) -> mx.array:
    """REINFORCE leave-one-out: a completion's reward less the mean of those of the same prompt's other completions.

    Formula:
        A_i = R_i - 1/(k-1) sum over j != i of R_j

    Ahmadian et al. 2024, eq. 9 (Kool et al. 2019).

    Args:
        rewards: [prompts, k], of the k completions of each prompt, the KL penalty included; NaN where there is none.

    Returns:
        [prompts, k]; 0 without a reward, and where no other completion has one.
    """
    is_known = mx.logical_not(mx.isnan(rewards))
    known = mx.where(is_known, rewards, 0.0)
    others = is_known.sum(axis=1, keepdims=True) - 1
    baselines = (known.sum(axis=1, keepdims=True) - known) / mx.maximum(others, 1)
    return mx.where(mx.logical_and(is_known, others > 0), known - baselines, 0.0)


def clipped_policy_losses(ratios: mx.array, advantages: mx.array, cliprange: float) -> mx.array:
    """The clipped surrogate objective, negated; Schulman et al. 2017, eq. 7.

    Formula:
        max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange)), r = pi(a|s) / pi_old(a|s)

    Args:
        ratios: [completions, tokens], or [completions] where an action is a whole completion.
        advantages: of the same shape.
        cliprange: how far a ratio is followed from 1.
    """
    clipped = mx.clip(ratios, 1 - cliprange, 1 + cliprange)
    return mx.maximum(-advantages * ratios, -advantages * clipped)


def clipped_value_losses(values: mx.array, old_values: mx.array, returns: mx.array, cliprange_value: float) -> mx.array:
    """The clipped squared error of values, halved, as in TRL and Stiennon et al. 2020's code.

    Formula:
        1/2 max((V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2)

    Args:
        values: [completions, tokens] V(s_t).
        old_values: [completions, tokens], those when the completion was sampled.
        returns: [completions, tokens].
        cliprange_value: how far a value may move from the old one to lower the loss.
    """
    clipped = mx.clip(values, old_values - cliprange_value, old_values + cliprange_value)
    return 0.5 * mx.maximum(mx.square(values - returns), mx.square(clipped - returns))


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """The coefficient of the KL penalty after a batch: higher if the KL was above its target. Ziegler et al. 2019.

    Formula:
        error = clip(KL / target - 1, -0.2, 0.2); kl_coef (1 + error episodes / horizon)

    Args:
        kl_coef: the coefficient that the batch was sampled with.
        kl: mean over its completions of log pi - log pi_ref, nats.
        target: the KL aimed at, nats.
        episodes: completions of the batch.
        horizon: completions in which an error of 1 would double the coefficient.
    """
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1 + error * episodes / horizon)
