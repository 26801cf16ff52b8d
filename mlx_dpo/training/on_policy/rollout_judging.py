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
    judged = _judge(judge, rollouts, prompts, missing_eos_penalty)
    return [
        _with_pair_or_win_rate(_with_scores(rollout, verdicts), verdicts, opponent)
        for rollout, verdicts in zip(rollouts, judged, strict=True)
    ]


def score_rollouts(
    judge: Judge, rollouts: Sequence[Rollout], prompts: Sequence[TextOrMessages], missing_eos_penalty: float
) -> list[Rollout]:
    """Score the completions of rollouts, without choosing among them; arguments and errors as in `judge_rollouts`."""
    judged = _judge(judge, rollouts, prompts, missing_eos_penalty)
    return [_with_scores(rollout, verdicts) for rollout, verdicts in zip(rollouts, judged, strict=True)]


def _judge(
    judge: Judge, rollouts: Sequence[Rollout], prompts: Sequence[TextOrMessages], missing_eos_penalty: float
) -> list[CandidateVerdicts]:
    texts = [[completion.text for completion in rollout.completions] for rollout in rollouts]
    judged = judge_candidates(judge, prompts, texts)
    is_cut = [[item.finish_reason == "length" for item in rollout.completions] for rollout in rollouts]
    return [
        replace(verdicts, scores=verdicts.scores - missing_eos_penalty * np.array(cut))
        for verdicts, cut in zip(judged, is_cut, strict=True)
    ]


def _with_scores(rollout: Rollout, verdicts: CandidateVerdicts) -> Rollout:
    table = verdicts.win_rates
    win_rates = None if table is None else tuple(map(finite_or_none, table))
    return replace(rollout, scores=finite_or_none(verdicts.scores), win_rates=win_rates)


def _with_pair_or_win_rate(rollout: Rollout, verdicts: CandidateVerdicts, opponent: Opponent) -> Rollout:
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
