"""A judge by what the command line says of it."""

from __future__ import annotations

from pathlib import Path

from mlx_dpo.errors import UserError
from mlx_dpo.judges.endpoint_judge import EndpointJudge
from mlx_dpo.judges.function_judge import FunctionJudge
from mlx_dpo.judges.judge import Judge

HINT = "A judge is FILE.py:NAME, an adapter folder, a model folder or Hub id, or the URL of an OpenAI-compatible API."


def find_judge(text: str, *, model: str | None = None, key_variable: str = "OPENAI_API_KEY") -> Judge:
    """A function, an endpoint, an adapter's implicit reward, or a model.

    Args:
        model: the model that an endpoint is to use, or that an adapter belongs to where it does not say.
        key_variable: the environment variable that holds an endpoint's key.

    Raises: `UserError` where it is none of these.
    """
    if text.startswith(("http://", "https://")):
        if not model:
            hint = "Name it with --judge-model, as the endpoint calls it."
            raise UserError("an endpoint has several models", field="judge", hint=hint)
        return EndpointJudge(text, model, key_variable)
    if ".py:" in text:
        return FunctionJudge.load(text)
    from mlx_dpo.forward.model_loading import model_folder
    from mlx_dpo.judges.model_judge import ModelJudge, RewardJudge

    if (Path(text) / "adapter_config.json").is_file():
        return RewardJudge(text, model)
    try:
        model_folder(text)
    except UserError as error:
        raise UserError(error.message, where=error.where, field="judge", hint=HINT) from None
    return ModelJudge(text)
