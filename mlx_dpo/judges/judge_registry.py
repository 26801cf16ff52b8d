"""Finds the judge for a value of --judge."""

from __future__ import annotations

import importlib
import pkgutil

import mlx_dpo.judges
from mlx_dpo.errors import UserError
from mlx_dpo.judges.judge import AdapterRewards, Judge, JudgeSpec
from mlx_dpo.judges.model_judge import ModelJudge


def judge_classes() -> list[type[Judge]]:
    """All judges that the modules of this package define."""
    names = [module.name for module in pkgutil.iter_modules(mlx_dpo.judges.__path__, "mlx_dpo.judges.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    return [cls for cls in dict.fromkeys(filter(_is_class, members)) if issubclass(cls, Judge)]


def load_judge(
    text: str,
    *,
    model: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    adapter_rewards: AdapterRewards | None = None,
    rubric: str | None = None,
) -> Judge:
    """Make the judge that `text` names: the first whose `accepts` takes it, else a model.

    Args:
        text: FILE.py:NAME, the URL of an OpenAI-compatible API, an adapter folder, or a model folder or Hub id.
        model: the model that an endpoint should use, or the base model of an adapter that does not name it.
        api_key_env: environment variable that holds an endpoint's API key.
        adapter_rewards: computes the implicit rewards of an adapter; needed only for judges that are adapters.
        rubric: the prompt for a judge that is a language model, as `read_rubric` returns it; None: the built-in one.

    Raises:
        UserError: it is none of these, or an option is missing or does not apply.
    """
    judge_class = next((cls for cls in judge_classes() if cls.accepts(text)), ModelJudge)
    if rubric is not None and not judge_class.takes_rubric:
        hint = "A rubric is the prompt for a judge that is a model or an endpoint."
        raise UserError("this judge takes no rubric", field="rubric", hint=hint)
    return judge_class.from_spec(JudgeSpec(text, model, api_key_env, adapter_rewards, rubric))


def _is_class(member: object) -> bool:
    return isinstance(member, type)
