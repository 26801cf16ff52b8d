"""Known failure modes of preference training: one function per mode, which returns a warning if a run shows it.

The constants are thresholds at which a person would start to look. All numbers are of held-out examples, since on its
training examples a policy always looks good.
"""

from __future__ import annotations

import math

import numpy as np

from mlx_dpo.reporting import policy_gradient_diagnostics as policy_gradient_diagnostics  # adds its own
from mlx_dpo.reporting import rollout_diagnostics as rollout_diagnostics  # likewise
from mlx_dpo.reporting.diagnostic_registry import DIAGNOSTICS as DIAGNOSTICS
from mlx_dpo.reporting.diagnostic_registry import diagnostic
from mlx_dpo.reporting.metric_intervals import Estimate, correlation, estimate_share, paired_p_value
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics

SIGNIFICANCE_LEVEL = 0.05
DISPLACEMENT_NATS = 0.1  # nats per token that chosen completions lose
MIN_MARGIN_NATS = 0.02  # growth of the log-prob margin, nats per token, below which its cause does not matter
MIN_CHOSEN_SHARE = 0.1  # share of the margin's growth that is due to chosen completions getting more likely
LENGTH_CORRELATION = 0.5  # correlation of the margin with the difference in length
MIN_SHORTER_ACCURACY = 0.6  # accuracy on pairs whose chosen completion is not the longer one
SAMPLE_GROWTH = 1.25  # length of sampled completions, after / before
MARGIN_DROP = 0.1  # share of its best margin that the policy lost again
MIN_KL_SHARE = 0.8  # of the KL at the best margin; below it, the policy is returning to its reference
MIN_EXAMPLES = 20  # below it, a share has too wide an interval
USEFUL_ACCURACY = 0.6  # reward accuracy that the interval must exclude before it counts as chance
CHANCE_START = 0.5  # share of the steps before which accuracy may still rise
STALLED_STEPS, STALLED_SHARE = 20, 0.2  # steps, and share of all steps, after which the loss should have changed
STALLED_LOSS_CHANGE, STALLED_REWARD = 0.01, 0.02  # relative change of the loss, and size of rewards, that count as none
REPETITION_SHARE, REPETITION_INCREASE = 0.2, 0.1  # share of repeated 4-grams in samples, and its increase
CONFIDENT_SHARE = 0.5  # share of the pairs, by size of margin, on which label noise is estimated
LABEL_NOISE_SHARE = 0.05  # share of flipped labels


@diagnostic(
    "likelihood_displacement",
    "likelihood displacement",
    "Add the likelihood of the chosen completions (--loss sigmoid=1,sft=0.1), or use --loss dpop or apo_zero, a lower "
    "--learning-rate, or pairs whose completions differ more. It can be harmless if only the ranking matters.",
)
def check_likelihood_displacement(run: RunStatistics) -> str | None:
    """Chosen and rejected both get less likely: Razin et al. 2024 (arXiv 2410.08847), Pal et al. 2024 (2402.13228)."""
    records = _pair_records(run)
    if records is None:
        return None
    before, after = records
    chosen, rejected = (_logp_per_token(after, i) - _logp_per_token(before, i) for i in (0, 1))
    p = paired_p_value(before.require_logps()[:, 0], after.require_logps()[:, 0])
    if chosen > -DISPLACEMENT_NATS or rejected >= 0 or p > SIGNIFICANCE_LEVEL:
        return None
    perplexities = [math.exp(min(700, -_logp_per_token(record, 0))) for record in records]
    return (
        f"Both completions get less likely: the chosen ones by {-chosen:.2f} nats per token (perplexity "
        f"{perplexities[0]:.3g} to {perplexities[1]:.3g}), the rejected ones by {-rejected:.2f}. The probability goes "
        "to completions that are neither."
    )


@diagnostic(
    "rejected_alone",
    "margin from rejected completions alone",
    "Check whether samples got better. If not: --loss sigmoid=1,sft=0.1, apo_zero or nca_pair raise the chosen ones.",
)
def check_margin_from_rejected(run: RunStatistics) -> str | None:
    """The margin grows although the chosen completions gain no likelihood."""
    records = _pair_records(run)
    if records is None or check_likelihood_displacement(run):
        return None
    before, after = records
    chosen, rejected = (after.require_logps() - before.require_logps()).mean(axis=0)
    margin = chosen - rejected
    if margin < MIN_MARGIN_NATS * after.lengths.mean() or rejected >= 0 or chosen > MIN_CHOSEN_SHARE * margin:
        return None
    return (
        f"The margin comes from the rejected completions alone: their log-prob fell by {-rejected:.2f} nats, that of "
        f"the chosen ones changed by {chosen:+.2f}."
    )


@diagnostic(
    "length",
    "length bias",
    "Try --loss sigmoid_norm --beta 5 or rdpo, --ld-alpha 0.5, or balance the lengths of chosen and rejected.",
    reward_model_advice="Balance the lengths of chosen and rejected, or add pairs whose better completion is short.",
)
def check_length_bias(run: RunStatistics) -> str | None:
    """The reward prefers long completions: Singhal et al. 2023 (arXiv 2310.03716), Park et al. 2024 (2403.19159)."""
    records = _pair_records(run)
    if records is None or len(records[1].margins) < MIN_EXAMPLES:
        return None
    after = records[1]
    extra_length = after.lengths[:, 0] - after.lengths[:, 1]
    if not (r := correlation(after.margins, extra_length)) >= LENGTH_CORRELATION:  # it may be NaN
        return None
    is_right = after.margins[extra_length <= 0] > 0
    growth = _sample_growth(run)
    if len(is_right) and is_right.mean() < MIN_SHORTER_ACCURACY:
        effect = (
            f"of the {len(is_right)} pairs whose chosen completion is not the longer one, only {is_right.mean():.0%} "
            "are ranked right"
        )
    elif growth is not None and growth >= SAMPLE_GROWTH:
        effect = f"sampled completions are {growth:.1f} times as long as before"
    else:
        return None
    return f"The margin follows length (correlation {r:.2f} with how much longer the chosen one is), and {effect}."


@diagnostic(
    "over_optimised",
    "over-optimization",
    "Stop earlier: use an earlier checkpoint of checkpoints/, fewer --epochs, a lower --learning-rate or a higher "
    "--beta. --loss ipo does not increase margins without limit.",
    reward_model_advice="Stop earlier: use an earlier checkpoint of checkpoints/, fewer --epochs, or a lower "
    "--learning-rate.",
)
def check_over_optimization(run: RunStatistics) -> str | None:
    """The margin falls while the policy keeps moving away from its reference.

    Gao et al. 2022 (arXiv 2210.10760), Rafailov et al. 2024 (arXiv 2406.02900).
    """
    records = [record for record in run.eval_records if record.step > 0]
    if len(records) < 2 or not records[0].is_paired:
        return None
    best, last = max(records, key=lambda record: record.margins.mean()), records[-1]
    best_margin, last_margin = best.margins.mean(), last.margins.mean()
    has_dropped = best_margin > 0 and best_margin - last_margin >= MARGIN_DROP * best_margin
    if not has_dropped or paired_p_value(best.margins, last.margins) > SIGNIFICANCE_LEVEL:
        return None
    kl_change = ""
    if best.kl_per_token is not None and last.kl_per_token is not None:
        if last.kl_per_token < MIN_KL_SHARE * best.kl_per_token:
            return None
        numbers = f"{best.kl_per_token:.3g} to {last.kl_per_token:.3g}"
        kl_change = f" while the KL to the reference went from {numbers} nats per token"
    return (
        f"The held-out margin was best at step {best.step} ({best_margin:.3f}) and is {last_margin:.3f} at step "
        f"{last.step}{kl_change}."
    )


@diagnostic(
    "chance",
    "accuracy at chance",
    "Check whether chosen and rejected are swapped in one of the files, whether the chat template is right "
    "(`mlx-dpo data show`), and whether held-out pairs have the preferences of the training pairs. Hold out more pairs "
    "(--valid-data, --valid-pairs) if they are few.",
    reward_model_advice="Raise --learning-rate (5 to 10 times) or train longer. Check whether chosen and rejected are "
    "swapped in one of the files, and whether held-out pairs have the preferences of the training pairs.",
)
def check_accuracy_at_chance(run: RunStatistics) -> str | None:
    """Held-out reward accuracy is one half or less."""
    accuracy = _accuracy(run)
    if accuracy is None or run.step < CHANCE_START * run.steps or accuracy.low > 0.5:
        return None
    numbers = f"{accuracy.value:.0%} [{accuracy.low:.0%}, {accuracy.high:.0%}]"
    if accuracy.high < 0.5:
        return f"Held-out reward accuracy is below chance, {numbers}: it learns the opposite of the held-out pairs."
    if accuracy.high >= USEFUL_ACCURACY:
        return (
            f"Held-out reward accuracy can't be distinguished from chance, {numbers}, after {run.step} steps: "
            f"{accuracy.count} pairs are too few to see less than a large difference."
        )
    return f"Held-out reward accuracy is at chance, {numbers}, after {run.step} steps."


@diagnostic(
    "standing_still",
    "stalled loss",
    "Raise --learning-rate (5 to 10 times), or train longer.",
    requires="train_metrics",
)
def check_stalled_loss(run: RunStatistics) -> str | None:
    """The loss is what it was at the start (log 2 for losses of the margin), and rewards are still zero."""
    starts = [*run.eval_metrics[:1], *run.train_metrics[:1]]
    if run.config.get("reference") == "none" or not run.train_metrics or not starts:
        return None
    last, start = run.train_metrics[-1], starts[0]["loss"]
    reward = max(abs(last.get(f"rewards/{name}", 0.0)) for name in ("chosen", "rejected"))
    if last["step"] < max(STALLED_STEPS, STALLED_SHARE * run.steps) or reward > STALLED_REWARD:
        return None
    if abs(last["loss"] - start) > STALLED_LOSS_CHANGE * abs(start):
        return None
    value = "log 2" if abs(start - math.log(2)) < STALLED_LOSS_CHANGE else "its initial value"
    return (
        f"After {last['step']} steps the loss is still {value} ({last['loss']:.4f}), and rewards are within "
        f"{reward:.2g} of 0."
    )


@diagnostic(
    "repetition",
    "repetition in samples",
    "Lower --learning-rate or --epochs, raise --beta, and check whether chosen completions repeat themselves.",
    requires="samples",
)
def check_repetition(run: RunStatistics) -> str | None:
    """Samples repeat themselves, by the share of repeated 4-grams as in Welleck et al. 2019 (arXiv 1908.04319)."""
    if len(run.samples) < 2:
        return None
    before, after = (float(np.mean(samples.repeated_shares)) for samples in (run.samples[0], run.samples[-1]))
    if after < REPETITION_SHARE or after < before + REPETITION_INCREASE:
        return None
    return (
        f"Sampled completions repeat themselves: {after:.0%} of their 4-grams of tokens occur earlier in them "
        f"({before:.0%} before)."
    )


@diagnostic(
    "label_noise",
    "label noise",
    "Look at the pairs that the policy gets most wrong. Fix them, or use --label-smoothing 0.1 or --loss robust.",
    reward_model_advice="Look at the pairs that are ranked most wrong, and fix them.",
)
def check_label_noise(run: RunStatistics) -> str | None:
    """The policy is confident of the opposite of many pairs' labels."""
    flipped = estimate_flipped_share(run)
    if flipped is None or flipped.low < LABEL_NOISE_SHARE:
        return None
    return (
        f"About {flipped.value:.0%} [{flipped.low:.0%}, {flipped.high:.0%}] of the held-out pairs look flipped: that "
        f"share of the {flipped.count} pairs with the largest margins has the rejected completion ahead."
    )


def estimate_flipped_share(run: RunStatistics) -> Estimate | None:
    """Estimate the share of pairs with flipped labels: of those with the largest margins, how many are negative.

    A flipped pair has the margin of its mirror image. Among pairs of which the policy is confident, a negative margin
    is therefore a flipped label rather than a close call: the idea of confident learning (Northcutt et al. 2021, arXiv
    1911.00068).

    Returns:
        The share; None if the policy is at chance or there are too few pairs.
    """
    after, accuracy = run.after, _accuracy(run)
    if after is None or accuracy is None or accuracy.low <= 0.5:
        return None
    size = np.abs(after.margins)
    return estimate_share(after.margins[size >= np.quantile(size, 1 - CONFIDENT_SHARE)] < 0)


def _pair_records(run: RunStatistics) -> tuple[EvalRecord, EvalRecord] | None:
    """The evaluations before and after training, if the examples are pairs."""
    if run.before is None or run.after is None or not run.after.is_paired:
        return None
    return run.before, run.after


def _logp_per_token(record: EvalRecord, column: int) -> float:
    return float(record.require_logps()[:, column].sum() / record.lengths[:, column].sum())


def _accuracy(run: RunStatistics) -> Estimate | None:
    after = run.after
    if after is None or not after.is_paired or after.is_reference or len(after.margins) < MIN_EXAMPLES:
        return None
    return estimate_share(after.margins > 0)


def _sample_growth(run: RunStatistics) -> float | None:
    """How many times as long sampled completions are as before; None if that is not significant or unknown."""
    if len(run.samples) < 2:
        return None
    before, after = (np.array(samples.lengths, np.float64) for samples in (run.samples[0], run.samples[-1]))
    is_significant = before.mean() and paired_p_value(before, after) < SIGNIFICANCE_LEVEL
    return float(after.mean() / before.mean()) if is_significant else None
