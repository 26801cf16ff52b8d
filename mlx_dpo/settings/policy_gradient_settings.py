"""Settings of PPO and RLOO: reinforcement learning on the scores of a reward model or a judge."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_dpo.config_fields import setting

GROUP = "Policy gradient (ppo, rloo)"


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings:
    """How `--loss ppo` and `--loss rloo` learn. The attributes are described by their help texts."""

    reward_model: str | None = setting(
        None, GROUP, "Adapter of `train --loss reward` whose output is the reward; or else --judge, one that scores."
    )
    # None below: the default in the signature of the loss, or in `policy_gradient_checks`.
    kl_coef: float | None = setting(
        None, GROUP, "Weight of the KL to the reference in the reward; lower lets the policy move further.", low=0
    )
    kl_target: float | None = setting(
        None,
        GROUP,
        "Adapt --kl-coef so that the KL of an answer is about this, in nats. Default: fixed.",
        low=1e-6,
    )
    kl_horizon: int | None = setting(
        None, GROUP, "With --kl-target: answers in which it adapts; smaller is faster. Default: 10000.", low=1
    )
    num_ppo_epochs: int | None = setting(
        None, GROUP, "Passes over each batch of sampled answers. Default: 4 with ppo, 1 with rloo.", low=1
    )
    num_mini_batches: int | None = setting(
        None, GROUP, "Optimizer batches, of --batch-size prompts each, to sample at a time. Default: 1.", low=1
    )
    cliprange: float | None = setting(
        None, GROUP, "How far the ratio of new to old probability is followed from 1.", low=1e-6
    )
    rloo_k: int | None = setting(
        None, GROUP, "rloo: answers to each prompt, which are compared with each other. Default: 4.", low=2
    )
    vf_coef: float | None = setting(None, GROUP, "ppo: weight of the value loss.", low=0)
    cliprange_value: float | None = setting(
        None, GROUP, "ppo: how far a value may move from that of the sampling policy.", low=1e-6
    )
    gamma: float | None = setting(None, GROUP, "ppo: discount factor of later rewards.", low=0, high=1)
    lam: float | None = setting(
        None,
        GROUP,
        "ppo: lambda of generalized advantage estimation; lower: less variance, more bias.",
        low=0,
        high=1,
    )
    whiten_rewards: bool | None = setting(None, GROUP, "ppo: scale the rewards of a sampled batch to a variance of 1.")
