"""A judge's verdicts on rollouts, and which of the completions to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.judges.judge import Judge
from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts, judge_candidates
from mlx_dpo.labeling.pair_selection import select_pairs
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.training.on_policy.rollout import Rollout, finite_or_none


def judge_rollouts(
    judge: Judge,
    rollouts: Sequence[Rollout],
    prompts: Sequence[TextOrMessages],
    opponent: Opponent,
    missing_eos_penalty: float,
) -> list[Rollout]:
    """Judge the completions of rollouts.

    Args:
        judge: gives scores or verdicts.
        rollouts: without verdicts.
        prompts: [rollouts] their prompts.
        opponent: whom the policy is compared with; from a mixture's completion nothing is learned.
        missing_eos_penalty: subtracted from the score of a completion that was cut off.

    Returns:
        The rollouts with scores, and with a pair or a win rate if the verdicts give one.

    Raises:
        UserError: the judge fails.
    """
    texts = [[completion.text for completion in rollout.completions] for rollout in rollouts]
    judged = judge_candidates(judge, prompts, texts)
    return [
        _with_verdicts(rollout, verdicts, opponent, missing_eos_penalty)
        for rollout, verdicts in zip(rollouts, judged, strict=True)
    ]


def _with_verdicts(
    rollout: Rollout, verdicts: CandidateVerdicts, opponent: Opponent, missing_eos_penalty: float
) -> Rollout:
    is_cut = np.array([completion.finish_reason == "length" for completion in rollout.completions])
    verdicts = replace(verdicts, scores=verdicts.scores - missing_eos_penalty * is_cut)
    table = verdicts.win_rates
    rollout = replace(
        rollout,
        scores=finite_or_none(verdicts.scores),
        win_rates=None if table is None else tuple(map(finite_or_none, table)),
    )
    if opponent is Opponent.MIXTURE:
        return replace(rollout, win_rate=_preference(verdicts))
    pairs = select_pairs(verdicts)
    return replace(rollout, chosen=pairs[0].chosen, rejected=pairs[0].rejected) if pairs else rollout


def _preference(verdicts: CandidateVerdicts) -> float | None:
    """P(first over second): the judge's, or the sigmoid of the difference of its scores (Bradley and Terry)."""
    difference = float(verdicts.scores[0] - verdicts.scores[1])
    table = verdicts.win_rates
    preference = 0.5 + 0.5 * math.tanh(difference / 2) if table is None else float(table[0, 1])
    return None if math.isnan(preference) else preference
