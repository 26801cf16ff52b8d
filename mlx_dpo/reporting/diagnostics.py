"""Known ways for preference training to go wrong, one function each: from a run's numbers to a sentence, or None.

A threshold is where a person would start to look, not a law: each stands here by name. Numbers are of held-out
examples, since on those it trains on a policy always looks well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_dpo.reporting import metric_intervals as statistics
from mlx_dpo.reporting.metric_intervals import Estimate, correlation, paired_p_value
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics

SIGNIFICANCE_LEVEL = 0.05  # p-value under which a change is taken for one
DISPLACEMENT_NATS = 0.1  # nats a token that chosen answers lose
MIN_MARGIN_NATS = 0.02  # nats a token that log-probs part by, under which nothing is said of who moved
MIN_CHOSEN_SHARE = 0.1  # of the margin that comes from the chosen answers rising
LENGTH_CORRELATION = 0.5  # correlation of margin and difference in length
MIN_SHORTER_ACCURACY = 0.6  # accuracy on pairs whose chosen answer is not the longer one
SAMPLE_GROWTH = 1.25  # sampled answers, after over before
MARGIN_DROP = 0.1  # share of its best margin that is lost again
MIN_KL_SHARE = 0.8  # of the KL at the best margin: less, and the policy is on its way back
MIN_EXAMPLES = 20  # examples under which a share says little
CHANCE_START = 0.5  # share of the steps before which accuracy may still rise
STALLED_STEPS, STALLED_SHARE = 20, 0.2  # steps, and share of all steps, after which the loss should have moved
STALLED_LOSS_CHANGE, STALLED_REWARD = 0.01, 0.02  # relative change of the loss, and size of rewards, that are no move
REPETITION_SHARE, REPETITION_INCREASE = 0.2, 0.1  # share of repeated 4-grams in samples, and how much more than before
CONFIDENT_SHARE = 0.5  # share of pairs, by size of margin, on which label noise is estimated
LABEL_NOISE_SHARE = 0.05  # share of flipped labels that is worth a look


@dataclass(frozen=True)
class Diagnostic:
    """A way to go wrong.

    Attributes:
        name: for programs; title: for people.
        advice: what to try.
        found: the sentence on a run that has it; None of one that has not, or where there is too little to tell.
        needs: what it is told from.
    """

    name: str
    title: str
    advice: str
    check: Callable[[RunStatistics], str | None]
    requires: Literal["pairs", "samples", "reports"] = "pairs"

    def applies_to(self, run: RunStatistics) -> bool:
        """Whether the run has what it is told from."""
        if self.requires == "pairs":
            return run.after is not None and run.after.is_paired
        return len(run.samples) > 1 if self.requires == "samples" else bool(run.train_metrics)


def check_likelihood_displacement(run: RunStatistics) -> str | None:
    """Chosen and rejected answers both lose: Razin et al. 2024 (arXiv 2410.08847), Pal et al. 2024 (2402.13228)."""
    if (two := _pairs(run)) is None:
        return None
    before, after = two
    chosen, rejected = _per_token(after, 0) - _per_token(before, 0), _per_token(after, 1) - _per_token(before, 1)
    if (
        chosen > -DISPLACEMENT_NATS
        or rejected >= 0
        or paired_p_value(before.logps[:, 0], after.logps[:, 0]) > SIGNIFICANCE_LEVEL
    ):
        return None
    return (
        f"Both answers get less likely, the chosen ones by {-chosen:.2f} nats a token (perplexity "
        f"{math.exp(min(700, -_per_token(before, 0))):.3g} to {math.exp(min(700, -_per_token(after, 0))):.3g}) and the "
        f"rejected ones by {-rejected:.2f}: the probability goes to answers that are in neither."
    )


def check_margin_from_rejected(run: RunStatistics) -> str | None:
    """The margin grows and the chosen answers gain nothing."""
    if (two := _pairs(run)) is None or check_likelihood_displacement(run):
        return None
    before, after = two
    chosen, rejected = ((after.logps - before.logps)[:, side].mean() for side in (0, 1))
    margin = chosen - rejected
    if margin < MIN_MARGIN_NATS * after.lengths.mean() or rejected >= 0 or chosen > MIN_CHOSEN_SHARE * margin:
        return None
    return (
        f"The margin comes from the rejected answers alone: their log-prob fell by {-rejected:.2f} nats, that of the "
        f"chosen ones changed by {chosen:+.2f}."
    )


def check_length_bias(run: RunStatistics) -> str | None:
    """The reward prefers long answers: Singhal et al. 2023 (arXiv 2310.03716), Park et al. 2024 (2403.19159)."""
    if (two := _pairs(run)) is None or len(two[1].margins) < MIN_EXAMPLES:
        return None
    after, longer = two[1], two[1].lengths[:, 0] - two[1].lengths[:, 1]
    r = correlation(after.margins, longer)
    if not r >= LENGTH_CORRELATION:
        return None
    right = after.margins[longer <= 0] > 0
    grown = _growth_of_samples(run)
    if len(right) and right.mean() < MIN_SHORTER_ACCURACY:
        seen = f"of the {len(right)} pairs whose chosen answer is not the longer one, {right.mean():.0%} come out right"
    elif grown is not None and grown >= SAMPLE_GROWTH:
        seen = f"sampled answers are {grown:.1f} times as long as before"
    else:
        return None
    return f"The margin follows length (correlation {r:.2f} with how much longer the chosen answer is), and {seen}."


def check_over_optimization(run: RunStatistics) -> str | None:
    """The policy goes on moving away and the margin falls: Gao et al. 2022 (arXiv 2210.10760), Rafailov et al. 2024
    (2406.02900)."""
    measured = [moment for moment in run.eval_records if moment.step > 0]
    if len(measured) < 2 or not measured[0].is_paired:
        return None
    best, last = max(measured, key=lambda moment: moment.margins.mean()), measured[-1]
    fall = best.margins.mean() - last.margins.mean()
    if (
        best.margins.mean() <= 0
        or fall < MARGIN_DROP * best.margins.mean()
        or paired_p_value(best.margins, last.margins) > SIGNIFICANCE_LEVEL
    ):
        return None
    kls = best.kl_per_token, last.kl_per_token
    if kls[0] is not None and kls[1] is not None:
        if kls[1] < MIN_KL_SHARE * kls[0]:
            return None
        kl = f" while the KL to the reference went from {kls[0]:.3g} to {kls[1]:.3g} nats a token"
    else:
        kl = ""
    return (
        f"The held-out margin was best at step {best.step} ({best.margins.mean():.3f}) and is "
        f"{last.margins.mean():.3f} at step {last.step}{kl}."
    )


def check_accuracy_at_chance(run: RunStatistics) -> str | None:
    """Held-out accuracy at a half, or under it."""
    accuracy = _accuracy(run)
    if accuracy is None or run.step < CHANCE_START * run.steps or accuracy.low > 0.5:
        return None
    told = f"{accuracy.value:.0%} [{accuracy.low:.0%}, {accuracy.high:.0%}]"
    if accuracy.high < 0.5:
        return (
            f"Held-out reward accuracy is below chance, {told}: it learns the opposite of what held-out pairs prefer."
        )
    return f"Held-out reward accuracy is at chance, {told}, after {run.step} steps."


def check_stalled_loss(run: RunStatistics) -> str | None:
    """The loss is where it began, at log 2 for a loss of the margin, and so are the rewards."""
    starts = [*run.eval_metrics[:1], *run.train_metrics[:1]]
    if run.config.get("reference") == "none" or not run.train_metrics or not starts:
        return None
    step, last, start = run.train_metrics[-1]["step"], run.train_metrics[-1], starts[0]["loss"]
    moved = max(abs(last.get(f"rewards/{side}", 0.0)) for side in ("chosen", "rejected"))
    if step < max(STALLED_STEPS, STALLED_SHARE * run.steps) or moved > STALLED_REWARD:
        return None
    if abs(last["loss"] - start) > STALLED_LOSS_CHANGE * abs(start):
        return None
    place = "log 2" if abs(start - math.log(2)) < STALLED_LOSS_CHANGE else "where it began"
    return f"After {step} steps the loss is still at {place} ({last['loss']:.4f}), and rewards within {moved:.2g} of 0."


def check_repetition(run: RunStatistics) -> str | None:
    """Samples repeat themselves; share of repeated 4-grams as in Welleck et al. 2019 (arXiv 1908.04319)."""
    if len(run.samples) < 2:
        return None
    before, after = (float(np.mean(samples.repeated)) for samples in (run.samples[0], run.samples[-1]))
    if after < REPETITION_SHARE or after < before + REPETITION_INCREASE:
        return None
    return (
        f"Sampled answers repeat themselves: {after:.0%} of their runs of four tokens stand in them already "
        f"({before:.0%} before)."
    )


def check_label_noise(run: RunStatistics) -> str | None:
    """Pairs that the policy is sure of, the other way round."""
    flipped = estimate_flipped_share(run)
    if flipped is None or flipped.low < LABEL_NOISE_SHARE:
        return None
    return (
        f"About {flipped.value:.0%} [{flipped.low:.0%}, {flipped.high:.0%}] of the held-out pairs look flipped: of the "
        f"{flipped.count} it is surest of, so many have the rejected answer ahead."
    )


def estimate_flipped_share(run: RunStatistics) -> Estimate | None:
    """Estimated share of flipped pairs: of the half with the largest margins, those with the rejected answer ahead.
    None where the policy is no judge: at chance, or with too few pairs.

    A flipped pair has the margin of its mirror image, so among pairs that the policy is sure of, a negative margin is a
    flipped label rather than a close call: the idea of confident learning (Northcutt et al. 2021, arXiv 1911.00068).
    """
    after, accuracy = run.after, _accuracy(run)
    if after is None or accuracy is None or accuracy.low <= 0.5:
        return None
    size = np.abs(after.margins)
    return statistics.estimate_share(after.margins[size >= np.quantile(size, 1 - CONFIDENT_SHARE)] < 0)


DIAGNOSTICS = (
    Diagnostic(
        "likelihood_displacement",
        "likelihood displacement",
        "Add the chosen answers' likelihood (--loss sigmoid=1,sft=0.1), or try --loss dpop or apo_zero; a lower "
        "--learning-rate; pairs whose answers differ more. It can be harmless where only the order counts.",
        check_likelihood_displacement,
    ),
    Diagnostic(
        "rejected_alone",
        "margin from the rejected alone",
        "Look whether samples got better. If not: --loss sigmoid=1,sft=0.1, apo_zero or nca_pair push the chosen up.",
        check_margin_from_rejected,
    ),
    Diagnostic(
        "length",
        "reward hacking by length",
        "Try --loss sigmoid_norm --beta 5 or rdpo, --ld-alpha 0.5, or balance the lengths of chosen and rejected.",
        check_length_bias,
    ),
    Diagnostic(
        "over_optimised",
        "over-optimisation",
        "Stop earlier: use an earlier checkpoint of checkpoints/, fewer --epochs, a lower --learning-rate or a higher "
        "--beta; --loss ipo does not push margins without end.",
        check_over_optimization,
    ),
    Diagnostic(
        "chance",
        "accuracy at chance",
        "Are chosen and rejected swapped in one of the files? Is the template right (`mlx-dpo data show`)? Do held-out "
        "pairs prefer what the others do?",
        check_accuracy_at_chance,
    ),
    Diagnostic(
        "standing_still",
        "loss stands still",
        "Raise --learning-rate (5 to 10 times), or train longer.",
        check_stalled_loss,
        requires="reports",
    ),
    Diagnostic(
        "repetition",
        "repetition in samples",
        "Lower --learning-rate or --epochs, raise --beta; look whether chosen answers repeat themselves.",
        check_repetition,
        requires="samples",
    ),
    Diagnostic(
        "label_noise",
        "label noise",
        "Look at the pairs it gets most wrong. Mend them, or --label-smoothing 0.1, --loss robust.",
        check_label_noise,
    ),
)


def _pairs(run: RunStatistics) -> tuple[EvalRecord, EvalRecord] | None:
    """Before and after, of pairs."""
    if run.before is None or run.after is None or not run.after.is_paired:
        return None
    return run.before, run.after


def _per_token(moment: EvalRecord, side: int) -> float:
    return float(moment.logps[:, side].sum() / moment.lengths[:, side].sum())


def _accuracy(run: RunStatistics) -> Estimate | None:
    after = run.after
    if after is None or not after.is_paired or after.is_reference or len(after.margins) < MIN_EXAMPLES:
        return None
    return statistics.estimate_share(after.margins > 0)


def _growth_of_samples(run: RunStatistics) -> float | None:
    if len(run.samples) < 2:
        return None
    before, after = (np.array(samples.tokens, np.float64) for samples in (run.samples[0], run.samples[-1]))
    return (
        float(after.mean() / before.mean())
        if before.mean() and paired_p_value(before, after) < SIGNIFICANCE_LEVEL
        else None
    )
