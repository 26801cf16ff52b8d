"""A judge by what the command line says of it."""

from __future__ import annotations

from pathlib import Path

from mlx_dpo.errors import UserError
from mlx_dpo.judges.endpoint_judge import EndpointJudge
from mlx_dpo.judges.function_judge import FunctionJudge
from mlx_dpo.judges.judge import Judge

HINT = "A judge is FILE.py:NAME, an adapter folder, a model folder or Hub id, or the URL of an OpenAI-compatible API."


def load_judge(spec: str, *, model: str | None = None, api_key_env: str = "OPENAI_API_KEY") -> Judge:
    """A function, an endpoint, an adapter's implicit reward, or a model.

    Args:
        model: the model that an endpoint is to use, or that an adapter belongs to where it does not say.
        key_variable: the environment variable that holds an endpoint's key.

    Raises: `UserError` where it is none of these.
    """
    if spec.startswith(("http://", "https://")):
        if not model:
            hint = "Name it with --judge-model, as the endpoint calls it."
            raise UserError("an endpoint has several models", field="judge", hint=hint)
        return EndpointJudge(spec, model, api_key_env)
    if ".py:" in spec:
        return FunctionJudge.load(spec)
    from mlx_dpo.forward.model_loading import find_model_folder
    from mlx_dpo.judges.model_judge import ImplicitRewardJudge, ModelJudge

    if (Path(spec) / "adapter_config.json").is_file():
        return ImplicitRewardJudge(spec, model)
    try:
        find_model_folder(spec)
    except UserError as error:
        raise UserError(error.message, where=error.where, field="judge", hint=HINT) from None
    return ModelJudge(spec)
