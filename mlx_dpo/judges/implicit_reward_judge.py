"""A judge that is an adapter: the answer with the higher implicit reward is better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_dpo.adapters.adapter_folder import adapter_base_model
from mlx_dpo.judges.judge import AdapterRewards, Comparison, Judge, JudgeSpec


class ImplicitRewardJudge(Judge):
    """Compares beta * log-ratio of an adapter and its base model (Rafailov et al. 2023, section 5).

    Args:
        adapter_path: folder of the adapter.
        adapter_rewards: computes the rewards.
        model: base model of the adapter; default: the one that the adapter names.

    Raises:
        UserError: the adapter does not name its base model, and none is given.
    """

    order_sensitive = False

    def __init__(self, adapter_path: str | Path, adapter_rewards: AdapterRewards, model: str | None = None) -> None:
        self.name, self.adapter_rewards = str(adapter_path), adapter_rewards
        self.model = model or adapter_base_model(adapter_path)

    @classmethod
    def accepts(cls, text: str) -> bool:
        """An adapter folder."""
        return (Path(text) / "adapter_config.json").is_file()

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> ImplicitRewardJudge:
        """Find the adapter's base model."""
        if spec.adapter_rewards is None:
            raise TypeError("load_judge needs `adapter_rewards` for an adapter")
        return cls(spec.text, spec.adapter_rewards, spec.model)

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Compare the rewards; None where an answer is empty or was dropped for its length."""
        verdicts: list[float | None] = [None] * len(comparisons)
        answered = [i for i, pair in enumerate(comparisons) if pair.first.strip() and pair.second.strip()]
        if not answered:
            return verdicts
        pairs = [comparisons[i] for i in answered]
        rows = [{"prompt": pair.prompt, "completions": [pair.first, pair.second]} for pair in pairs]
        for i, rewards in zip(answered, self.adapter_rewards(self.name, self.model, rows), strict=True):
            if rewards is not None:
                first, second = rewards
                is_tie = first == second or comparisons[i].first == comparisons[i].second  # equal but for rounding
                verdicts[i] = 0.5 if is_tie else float(first > second)
        return verdicts
