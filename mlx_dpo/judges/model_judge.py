"""A judge that is a chat model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import find_model_folder, load_model, load_tokenizer
from mlx_dpo.judges.judge import Comparison, Judge, JudgeSpec
from mlx_dpo.judges.model_session import ModelSession
from mlx_dpo.judges.rubric_prompt import judge_messages, parse_verdict, rubric_digest
from mlx_dpo.lineage.weights_digest import weights_digest
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_responses

HINT = "A judge is FILE.py:NAME, an adapter folder, a model folder or Hub id, or the URL of an OpenAI-compatible API."


class ModelJudge(Judge):
    """Asks a chat model for a verdict, decoded greedily. Values that no other judge accepts are treated as a model.

    Args:
        model: folder or Hub id; loaded for each call of `verdicts`, or once for a `session`, and released after it.
        max_tokens: length limit of the model's answer, in tokens.
        rubric: the prompt; see `rubric_prompt`.
    """

    takes_rubric = True

    def __init__(self, model: str, max_tokens: int = 1024, rubric: str | None = None) -> None:
        self.name, self.max_tokens, self.rubric = model, max_tokens, rubric
        self._session = ModelSession(lambda: (load_model(model).model, ChatRenderer(load_tokenizer(model))))

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> ModelJudge:
        """Check that there is such a model."""
        try:
            find_model_folder(spec.text)
        except UserError as error:
            raise UserError(error.message, where=error.where, field="judge", hint=HINT) from None
        return cls(spec.text, rubric=spec.rubric)

    @property
    def identity(self) -> str | None:
        """Digests of the model's weights and of the prompt."""
        weights = weights_digest(find_model_folder(self.name))
        return weights and f"model {weights} {rubric_digest(self.rubric)} {self.max_tokens}"

    def session(self) -> AbstractContextManager[object]:
        """A context with the model in memory."""
        return self._session()

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Generate an answer to the rubric prompt for each comparison, in batches."""
        prompts = [Prompt(judge_messages(comparison, self.rubric)[0]["content"]) for comparison in comparisons]
        with self._session() as (model, renderer):
            answers = generate_responses(model, renderer, prompts, SamplingParams(self.max_tokens))
        return [parse_verdict(text) for text in answers]
