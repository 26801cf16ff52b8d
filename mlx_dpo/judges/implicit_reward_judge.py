"""A judge that is an adapter: the score of an answer is its implicit reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import (
    ADAPTER_CONFIG_FILE,
    adapter_base_model,
    adapter_digest,
    apply_adapter,
    is_reward_model,
)
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.forward.model_loading import find_model_folder, load_model
from mlx_dpo.judges.judge import AdapterRewards, Answer, JudgeSpec, ScalarJudge
from mlx_dpo.judges.model_session import ModelSession
from mlx_dpo.lineage.weights_digest import weights_digest


class ImplicitRewardJudge(ScalarJudge):
    """Scores by beta * log-ratio of an adapter and its base model (Rafailov et al. 2023, section 5).

    Args:
        adapter_path: folder of the adapter.
        adapter_rewards: computes the rewards.
        model: base model of the adapter; default: the one that the adapter names.

    Raises:
        UserError: the adapter does not name its base model, and none is given.
    """

    def __init__(self, adapter_path: str | Path, adapter_rewards: AdapterRewards, model: str | None = None) -> None:
        self.name, self.adapter_rewards = str(adapter_path), adapter_rewards
        self.model = model or adapter_base_model(adapter_path)
        self._session = ModelSession(self._load_policy)

    @classmethod
    def accepts(cls, text: str) -> bool:
        """An adapter folder that holds a policy."""
        return (Path(text) / ADAPTER_CONFIG_FILE).is_file() and not is_reward_model(text)

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> ImplicitRewardJudge:
        """Find the adapter's base model."""
        if spec.adapter_rewards is None:
            raise TypeError("load_judge needs `adapter_rewards` for an adapter")
        return cls(spec.text, spec.adapter_rewards, spec.model)

    @property
    def identity(self) -> str | None:
        """A digest of the adapter's files, and of the weights of its base model."""
        return f"implicit reward {adapter_identity(self.name, self.model)}"

    def _load_policy(self) -> nn.Module:
        policy = load_model(self.model).model
        apply_adapter(policy, self.name)
        return policy

    def session(self) -> AbstractContextManager[object]:
        """A context with the model and the adapter in memory."""
        return self._session()

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """The rewards; None where an answer is empty or was dropped for its length.

        Answers to one prompt are one row, whose prompt is computed once.
        """
        rows: dict[str, tuple[TextOrMessages, list[str]]] = {}
        keys = [json.dumps(answer.prompt) for answer in answers]
        for key, answer in zip(keys, answers, strict=True):
            completions = rows.setdefault(key, (answer.prompt, []))[1]
            if answer.completion.strip() and answer.completion not in completions:
                completions.append(answer.completion)
        filled = {key: {"prompt": prompt, "completions": texts} for key, (prompt, texts) in rows.items() if texts}
        if not filled:
            return [None] * len(answers)
        rewards = self.adapter_rewards(self.name, self.model, list(filled.values()), policy=self._session.model)
        scores = {
            (key, text): float(reward)
            for (key, row), row_rewards in zip(filled.items(), rewards, strict=True)
            if row_rewards is not None
            for text, reward in zip(row["completions"], row_rewards, strict=True)
        }
        return [scores.get((key, answer.completion)) for key, answer in zip(keys, answers, strict=True)]


def adapter_identity(adapter_path: str, model: str) -> str:
    """Return a digest of an adapter's files, and one of the weights of its base model.

    Args:
        adapter_path: the adapter folder.
        model: folder or Hub id of the base model.

    Raises:
        UserError: there is no such adapter or model.
    """
    return f"{adapter_digest(adapter_path)} {weights_digest(find_model_folder(model))}"
