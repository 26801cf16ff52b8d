"""What a round has changed: win rates by the judge, lengths and variety of the samples, accuracy on held-out pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.evaluation.evaluator import evaluate
from mlx_dpo.evaluation.head_to_head import judge_head_to_head
from mlx_dpo.judges.judge import Answer
from mlx_dpo.labeling.cached_judge import CachedJudge
from mlx_dpo.utils.progress import Progress


@dataclass(frozen=True)
class AnswerSet:
    """The answers of a policy to the evaluation prompts.

    Attributes:
        prompts: texts, or messages.
        answers: [prompts] texts.
    """

    prompts: list[TextOrMessages]
    answers: list[str]

    @classmethod
    def read(cls, file: Path) -> AnswerSet:
        """Read a file of `sample`, of which the first completion of each prompt is taken."""
        rows = read_samples(file)
        return cls([row["prompt"] for row in rows], [row["completions"][0] for row in rows])


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of `sample`."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def compare_answers(answers: AnswerSet, opponent: AnswerSet, judge: CachedJudge) -> dict[str, Any]:
    """Win rates of a policy against another one, with their 95% intervals, as `evaluate --judge` has them.

    Args:
        answers: of the policy.
        opponent: answers of the other policy to the same prompts.
        judge: compares them.

    Raises:
        UserError: the judge fails.
    """
    with judge.session():
        summary = judge_head_to_head(answers.prompts, opponent.answers, answers.answers, judge).summary
    lengths = summary["mean_characters"]
    return {
        **{name: value for name, value in summary.items() if name not in ("answers", "judge", "mean_characters")},
        "mean_characters": {"other": lengths["base"], "own": lengths["tuned"]},
    }


def mean_score(answers: AnswerSet, judge: CachedJudge) -> float | None:
    """The mean score of answers; None if the judge does not score. Raises `UserError` if it fails."""
    if not judge.is_scalar:
        return None
    with judge.session():
        scores = judge.scores([Answer(*pair) for pair in zip(answers.prompts, answers.answers, strict=True)])
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def sample_statistics(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lengths and variety of the completions that a round is trained on.

    Args:
        rows: of `sample`.

    Returns:
        `completions`, their number; `mean_tokens`; `distinct`, the mean share of different texts among the completions
        of a prompt; `truncated`, the share that ended at the length limit.
    """
    tokens = [count for row in rows for count in row["token_counts"]]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    return {
        "completions": len(tokens),
        "mean_tokens": float(np.mean(tokens)),
        "distinct": float(np.mean([len(set(row["completions"])) / len(row["completions"]) for row in rows])),
        "truncated": float(np.mean([reason == "length" for reason in reasons])),
    }


def held_out_metrics(config: TrainConfig, adapter_path: Path, progress: Progress) -> dict[str, float] | None:
    """Metrics on the held-out pairs, with the base model as the reference in every round; None without such pairs.

    Args:
        config: its model, held-out pairs and loss are used.
        adapter_path: the adapter to measure.
        progress: receives the progress.

    Raises:
        UserError: the pairs can't be read.
    """
    if config.valid_data is None:
        return None
    config, counter = config.replace(data=config.valid_data, reference="base"), progress.counter("Held-out pairs")
    measured = evaluate(config, adapter_path=adapter_path, progress=counter)
    return {name: measured[name] for name in ("pairs", "rewards/accuracies", "rewards/margins") if name in measured}
