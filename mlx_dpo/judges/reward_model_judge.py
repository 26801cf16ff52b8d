"""A judge that is a reward model: the score of an answer is the output of its head."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from mlx_dpo.adapters.adapter_folder import adapter_base_model, is_reward_model, load_adapter, read_adapter_spec
from mlx_dpo.adapters.reward_head import read_reward_head
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.forward.reward_model import RewardModel, encoding_config
from mlx_dpo.judges.implicit_reward_judge import adapter_identity
from mlx_dpo.judges.judge import Answer, JudgeSpec, ScalarJudge
from mlx_dpo.judges.model_session import ModelSession


class RewardModelJudge(ScalarJudge):
    """Scores by a reward model that `train --loss reward` has trained.

    Args:
        adapter_path: folder of its run.
        model: its base model; default: the one that the adapter names.

    Raises:
        UserError: the folder holds no reward model, or does not name its base model and none is given.
    """

    def __init__(self, adapter_path: str, model: str | None = None) -> None:
        read_adapter_spec(adapter_path)  # before anything long relies on it
        read_reward_head(adapter_path)
        self.name, self.model = adapter_path, model or adapter_base_model(adapter_path)
        self._session = ModelSession(lambda: RewardModel.load(self.name, model=self.model))

    @classmethod
    def accepts(cls, text: str) -> bool:
        """An adapter folder with a reward head."""
        return is_reward_model(text)

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> RewardModelJudge:
        """Find the base model."""
        return cls(spec.text, spec.model)

    @property
    def identity(self) -> str | None:
        """A digest of the adapter's files, its settings, and the weights of its base model."""
        config = encoding_config(self.name)
        encoding = (config.max_length, config.overlong, config.raw, config.chat_template_kwargs)
        return f"reward model {adapter_identity(self.name, self.model)} {encoding}"

    def check(self) -> None:
        """Check that the adapter is one of the base model, whose weights stay on disk; see `Judge`."""
        model = load_model(self.model, lazy=True).model
        try:
            load_adapter(model, self.name, lazy=True, allow_reward_model=True)
        except UserError as error:
            hint = "Name the base model of the reward model with --judge-model, or leave that out."
            raise UserError(error.message, where=error.where, hint=hint) from None

    def session(self) -> AbstractContextManager[object]:
        """A context with the model in memory."""
        return self._session()

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """The rewards; None where an answer is empty, or too long for the settings of the run."""
        filled = [i for i, answer in enumerate(answers) if answer.completion.strip()]
        scores: list[float | None] = [None] * len(answers)
        if not filled:
            return scores
        rows = [{"prompt": answers[i].prompt, "completion": answers[i].completion} for i in filled]
        with self._session() as reward_model:
            rewards = reward_model.rewards(rows)
        for i, reward in zip(filled, rewards, strict=True):
            scores[i] = float(reward) if np.isfinite(reward) else None
        return scores
