"""Judges that are models on this machine: one that is asked, and one whose implicit reward is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlx_dpo.adapters.adapter_folder import adapter_base_model
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.evaluation.example_sets import examples_from_rows
from mlx_dpo.evaluation.implicit_rewards import RewardScorer
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.judges.rubric_prompt import judge_messages, parse_verdict
from mlx_dpo.sampling.generation import SamplingParams, answer


class ModelJudge(Judge):
    """A chat model, asked greedily. It is loaded when it is first asked."""

    def __init__(self, model: str, max_tokens: int = 1024) -> None:
        self.name, self.max_tokens = model, max_tokens

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        tokenizer, model = load_tokenizer(self.name), load_model(self.name).model
        asked = [judge_messages(match) for match in comparisons]
        answers = answer(model, tokenizer, list(asked), SamplingParams(self.max_tokens))
        mx.clear_cache()
        return [parse_verdict(text) for text in answers]


class ImplicitRewardJudge(Judge):
    """The implicit reward of an adapter: the answer it rewards more is the better one (see `scoring`)."""

    order_sensitive = False

    def __init__(self, adapter_path: str | Path, model: str | None = None, config: TrainConfig | None = None) -> None:
        """model: the adapter's own, where it does not say."""
        self.name, self.adapter_path = str(adapter_path), adapter_path
        self.config = (config or TrainConfig()).replace(model=model or adapter_base_model(adapter_path))

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        rows = [{"prompt": match.prompt, "completions": [match.first, match.second]} for match in comparisons]
        there = [i for i, match in enumerate(comparisons) if match.first.strip() and match.second.strip()]
        found: list[float | None] = [None] * len(comparisons)
        if there:
            source = examples_from_rows([rows[i] for i in there], "answers", parse_candidates)
            scoring = RewardScorer.load(self.config, source, self.adapter_path)
            rewards = [row.rewards for batch in scoring.score_batches() for row in batch]
            for i, two in zip(there, rewards, strict=True):
                found[i] = None if two is None else float(two[0] > two[1]) + float(two[0] == two[1]) / 2
        return found
