"""Settings of training on the policy's own answers."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_dpo.config_fields import setting


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings:
    """What is sampled from the policy, and how it is judged. The attributes are described by their help texts."""

    on_policy: bool = setting(
        False, "On-policy", "Train on the model's own answers to --prompts, which --judge compares (online DPO)."
    )
    prompts: str | None = setting(
        None, "On-policy", "Prompts to answer: a .txt file with one a line, or rows of any format with prompts."
    )
    judge: str | None = setting(
        None,
        "On-policy",
        "Who compares the answers: FILE.py:NAME, the URL of an OpenAI-compatible API, an adapter, or a model.",
    )
    judge_model: str | None = setting(
        None, "On-policy", "Model that a judge at a URL should use, or base model of a judge that is an adapter."
    )
    num_completions: int = setting(
        2, "On-policy", "Completions sampled for each prompt; the best and the worst of them become a pair.", low=2
    )
    max_tokens: int = setting(256, "On-policy", "Longest sampled completion, in tokens.", low=1)
    temperature: float = setting(0.9, "On-policy", "Sampling temperature.", low=0.01)
    top_p: float = setting(
        1.0, "On-policy", "Sample from the most likely tokens of this total probability.", low=0.01, high=1
    )
    rollout_batches: int = setting(
        1, "On-policy", "Optimizer batches to sample ahead from the same policy: faster, less on-policy.", low=1
    )
    replay: float = setting(
        0.0, "On-policy", "Share of each batch that is drawn from the pairs of --data.", low=0, high=0.99
    )
    missing_eos_penalty: float | None = setting(
        None, "On-policy", "Subtracted from the score of a completion that --max-tokens has cut off.", low=0
    )
    nash_md_mixture_coef: float | None = setting(
        None,
        "On-policy",
        "nash_md: weight of the reference in the mixture that the policy is compared with. Default: 0.5.",
        low=0,
        high=1,
    )
