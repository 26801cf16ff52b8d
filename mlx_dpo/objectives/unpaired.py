"""Objectives on single completions with labels. Of pairs, the chosen answers are desirable and the rejected are not."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState
from mlx_dpo.objectives.objective import objective
from mlx_dpo.objectives.paired import log_sigmoid


def label_signs(batch: LabelledLogps) -> mx.array:
    """1 for desirable completions, -1 for the others."""
    return 2 * batch.desirable - 1


def label_weights(batch: LabelledLogps, desirable_weight: float, undesirable_weight: float) -> mx.array:
    """Each completion's weight by its label."""
    return mx.where(batch.desirable > 0, desirable_weight, undesirable_weight)


@objective(
    formula="v (1 - sigmoid(s beta (r - KL))); s = 1 and v = desirable_weight where the label is true, s = -1 and v = "
    "undesirable_weight where it is false; KL = the batch's mean of r over mismatched prompts and answers, at least 0",
    paper="2402.01306 Ethayarajh et al., eq. 7 and 8",
    when="Answers are judged one by one, thumbs up or down; or pairs are noisy",
    unpaired=True,
    kl=True,
)
def kto(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """KTO, Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 7 and 8, without its constant."""
    surprise = mx.sigmoid(-label_signs(batch) * beta * (batch.logratios - batch.kl))
    return label_weights(batch, desirable_weight, undesirable_weight) * surprise


def update_mean_reward(before: LossState, batch: LabelledLogps, *, beta: float, **_: Any) -> LossState:
    """(completions so far, the mean of their rewards)."""
    count, mean = before or (0.0, 0.0)
    rewards = beta * batch.logratios
    total = count + len(rewards)
    return total, mean + float(mx.sum(rewards - mean)) / total


@objective(
    formula="-v log sigmoid(s (beta r - delta)); s = 1 and v = desirable_weight where the label is true, s = -1 and "
    "v = undesirable_weight where it is false; delta = the mean of beta r over all completions so far",
    paper="2404.04656 Jung et al., eq. 10",
    when="As kto, as a classifier; without a second answer to compare with. On pairs, bco_pair has no shift",
    unpaired=True,
    whole_batch=True,
    running=update_mean_reward,
)
def bco(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """Binary classifier optimization with its reward shift; Jung et al. 2024 (arXiv 2404.04656)."""
    shift = batch.running[1] if batch.running else 0.0
    losses = -log_sigmoid(label_signs(batch) * (beta * batch.logratios - shift))
    return label_weights(batch, desirable_weight, undesirable_weight) * losses


@objective(
    formula="v (1 - sigmoid(s beta r)); s = 1 and v = desirable_weight where the label is true, s = -1 and v = "
    "undesirable_weight where it is false",
    paper="2408.06266 D'Oosterlinck et al., eq. 7",
    when="As kto, with no KL to estimate: desirable answers are better than the model's own",
    unpaired=True,
)
def apo_zero_unpaired(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """Anchored preference optimization, up, on single completions; D'Oosterlinck et al. 2024 (arXiv 2408.06266)."""
    return label_weights(batch, desirable_weight, undesirable_weight) * mx.sigmoid(
        -label_signs(batch) * beta * batch.logratios
    )


@objective(
    formula="-log pi(y) where the label is true or there is none, 0 where it is false; a batch's mean is over tokens",
    paper="2203.02155 Ouyang et al.",
    when="Before DPO, on the chosen answers or on rows of messages; or added to another loss to keep them likely. "
    "Alone on pairs, it has the reference run for its rewards only: --reference none spares it",
    reference=False,
    any_divergence=True,
    unpaired=True,
)
def sft(batch: LabelledLogps) -> mx.array:
    """Supervised fine-tuning on desirable completions; a batch's mean is over tokens, as TRL's."""
    return -batch.desirable * batch.likelihoods / max(batch.mean_desirable_tokens, 1e-9)
