"""The charts of metrics over steps that a report has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CurveSpec:
    """A chart of metrics over steps. Several metrics of one run get a color each.

    Attributes:
        name: see `charts.Chart`.
        title: see `charts.Chart`.
        y_label: see `charts.Chart`.
        metrics: keys of metrics.jsonl.
        description: see `charts.Chart`.
        is_implicit: whether label and description are about implicit rewards, and not about a reward model's.
    """

    name: str
    title: str
    y_label: str
    metrics: tuple[str, ...]
    description: str = ""
    is_implicit: bool = False


CURVES = (
    CurveSpec("loss", "Loss", "", ("loss",)),
    CurveSpec(
        "rewards",
        "Rewards",
        "beta x nats",
        ("rewards/chosen", "rewards/rejected"),
        "Often both fall, the chosen one less. What matters is the margin, and that chosen completions stay likely.",
        is_implicit=True,
    ),
    CurveSpec("margin", "Reward margin", "beta x nats", ("rewards/margins",), is_implicit=True),
    CurveSpec("accuracy", "Reward accuracy", "share of pairs", ("rewards/accuracies",)),
    CurveSpec(
        "logps",
        "Completion log-probs",
        "nats",
        ("logps/chosen", "logps/rejected"),
        "Summed over the tokens of a completion.",
    ),
    CurveSpec(
        "judge_reward", "Judge's reward", "", ("rollouts/reward",), "Mean over the answers sampled for training."
    ),
    CurveSpec(
        "rlhf_reward",
        "Score less KL penalty",
        "",
        ("objective/rlhf_reward",),
        "What a policy gradient maximizes: the score, less the coefficient times the KL. Mean over sampled answers.",
    ),
    CurveSpec(
        "sequence_kl",
        "KL to the reference",
        "nats per answer",
        ("objective/kl",),
        "log pi - log pi_ref of sampled answers, summed over their tokens.",
    ),
    CurveSpec("kl_coef", "Coefficient of the KL penalty", "", ("objective/kl_coef",)),
    CurveSpec("policy_loss", "Policy loss", "", ("loss/policy_avg",), "The clipped surrogate objective, negated."),
    CurveSpec("value_loss", "Value loss", "", ("loss/value_avg",), "Half the squared error of the value head."),
    CurveSpec(
        "clip_fraction",
        "Clipped ratios",
        "share",
        ("policy/clipfrac_avg",),
        "At which clipping stops the gradient of the policy. Above 0.2, steps are too large.",
    ),
    CurveSpec("approx_kl", "KL to the sampling policy", "nats", ("policy/approxkl_avg",), "Estimated on each batch."),
    CurveSpec("answer_length", "Length of answers", "tokens", ("rollouts/length",)),
    CurveSpec(
        "entropy_kl",
        "Entropy, and KL to the reference",
        "nats per token",
        ("rollouts/entropy", "rollouts/kl"),
        "Estimated on sampled answers.",
    ),
    CurveSpec(
        "variety",
        "Variety and ties",
        "share",
        ("rollouts/distinct", "rollouts/ties"),
        "Distinct answers to a prompt, and prompts for which the judge prefers no answer.",
    ),
    CurveSpec("grad_norm", "Gradient norm", "before clipping", ("grad_norm",)),
    CurveSpec("learning_rate", "Learning rate", "", ("learning_rate",)),
    CurveSpec("memory", "Peak memory", "GB", ("peak_memory_gb",)),
    CurveSpec("speed", "Speed", "pairs per second", ("pairs_per_second",)),
)
