"""Known failure modes of PPO and RLOO; see `diagnostics`."""

from __future__ import annotations

from mlx_dpo.reporting.diagnostic_registry import diagnostic
from mlx_dpo.reporting.rollout_diagnostics import beginning_and_end, mean_over_reports
from mlx_dpo.reporting.run_statistics import RunStatistics

CLIPPED_SHARE = 0.2  # of the tokens, at which clipping stops the gradient
FAR_NATS = 20.0  # KL of an answer; Stiennon et al. 2020 see learned rewards fail from about 10


@diagnostic(
    "large_policy_steps",
    "policy steps too large",
    "Lower --learning-rate (2 to 5 times) or --num-ppo-epochs, or raise --num-mini-batches.",
    requires="policy_gradient",
)
def check_large_policy_steps(run: RunStatistics) -> str | None:
    """Much of the gradient is clipped, so that the samples are no longer the policy's (Schulman et al. 2017)."""
    ends = beginning_and_end(run)
    if ends is None or not (share := mean_over_reports(ends[1], "policy/clipfrac_avg")) >= CLIPPED_SHARE:
        return None
    return (
        f"At the end, {share:.0%} of the ratios of probabilities are clipped: in its passes over a sample, the policy "
        "moves too far from the one that sampled."
    )


@diagnostic(
    "far_from_reference",
    "policy far from its reference",
    "Look at the answers: a learned reward is not to be trusted there. Raise --kl-coef, give a --kl-target (1 to 10), "
    "or lower --learning-rate.",
    requires="policy_gradient",
)
def check_far_from_reference(run: RunStatistics) -> str | None:
    """The KL to the reference is so large that a learned reward means little: Gao et al. 2022 (arXiv 2210.10760)."""
    ends = beginning_and_end(run)
    if ends is None or not (kl := mean_over_reports(ends[1], "objective/kl")) >= FAR_NATS:
        return None
    rewards = [mean_over_reports(part, "objective/scores") for part in ends]
    return f"The KL of an answer is {kl:.0f} nats; scores went from {rewards[0]:.3g} to {rewards[1]:.3g}."
