"""Models and tokenizers from disk or the Hub; every failure is a `UserError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.discovery.near_names import models_to_name, suggest_models
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, translate_hub_errors
from mlx_dpo.utils.json_files import read_json

CHAT_TEMPLATE_FILE = "chat_template.json"  # read by transformers' processors, but not by mlx-lm
NAMED_TEMPLATES_FOLDER = "additional_chat_templates"  # one file for each template beside the default one


@dataclass(frozen=True)
class LoadedModel:
    """An mlx-lm model in memory.

    Attributes:
        model: the model.
        config: the content of its config.json.
        path: the folder that it was loaded from.
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path


def find_model_folder(name: str) -> Path:
    """The local folder of a model: `name` itself, or its snapshot from the Hub. Raises `UserError`."""
    if not name:
        raise no_model_error()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError("not a model folder: there is no config.json in it", where=Where(name))
        return path
    if path.exists():
        raise UserError("--model takes a model folder or a Hub id, but this is a file", where=Where(name))
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    return download_files(name, DEFAULT_ALLOW_PATTERNS)


def no_model_error() -> UserError:
    """The error of a command that needs a model and got none: it names some that are on this machine."""
    hint = f"Name a model folder or Hub id with --model. {models_to_name()}"
    return UserError("no model given", field="model", hint=hint)


def download_files(name: str, patterns: Sequence[str]) -> Path:
    """The snapshot of a model on the Hub, with those of its files that match patterns. Raises `UserError`.

    Args:
        name: user/name or user/name@revision.
        patterns: of file names, such as *.json.
    """
    repo = HubRepoRef.parse(name)
    with suggest_models(name):
        if repo is None or repo.config_and_split:
            hint = "Hub ids are like user/name, or user/name@revision."
            raise UserError("there is no such folder, and it is not a Hub id", where=Where(name), hint=hint)
        with translate_hub_errors(name, prefix="there is no such folder, and "):
            fetch = hub_api().snapshot_download
            return Path(fetch(repo.repo_id, revision=repo.revision, allow_patterns=list(patterns)))


@contextmanager
def _as_user_error(path: Path, hint: str | None = None) -> Iterator[None]:
    """Turn any exception of mlx-lm or transformers about a model folder into a `UserError` of one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        lines = text.splitlines()
        reason = lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines[:3])
        if "trust_remote_code" in text:
            reason = "it needs its own code, but mlx-dpo runs no code that comes with a model"
        if isinstance(error, KeyError):
            reason = f"{reason} is missing from its config.json"
        raise UserError(f"this model can't be loaded: {reason[:400]}", where=Where(str(path)), hint=hint) from error


def load_model(name: str, *, lazy: bool = False) -> LoadedModel:
    """Load an mlx-lm model (4-bit, 8-bit, mxfp4, bf16, float32), without its tokenizer. Raises `UserError`.

    Args:
        name: a model folder, or a Hub id.
        lazy: leave every weight on disk until it is used.
    """
    from mlx_lm.utils import load_model as mlx_lm_load_model

    path = find_model_folder(name)
    read_json(path / "config.json")
    with _as_user_error(path, "Is the download complete, and is it a model that mlx-lm runs?"):
        model, config = mlx_lm_load_model(path, lazy=lazy)
    return LoadedModel(model, config, path)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or Hub id, without its weights; see `chat_template_note`. Raises `UserError`."""
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

    path = find_model_folder(name)
    read_json(path / "config.json")
    with _as_user_error(path, "Its tokenizer files may be missing or damaged."):
        options: dict[str, Any] = {"trust_remote_code": False}  # or transformers would ask on the terminal
        if template := _template_of_json_file(path):
            options["chat_template"] = template
        return mlx_lm_load_tokenizer(path, options, eos_token_ids=load_config(path).get("eos_token_id"))


def chat_template_note(name: str) -> str | None:
    """A note on a model whose chat template only transformers' processors read; None for other models.

    `load_tokenizer` reads it, and saving that tokenizer, as `mlx-dpo fuse` does, writes it to a file that all read.
    """
    path = find_model_folder(name)
    if _template_of_json_file(path) is None:
        return None
    return (
        f"the chat template is from {path / CHAT_TEMPLATE_FILE}, which mlx-lm does not read. mlx_lm.generate uses no "
        "chat template with this model unless you save its text as chat_template.jinja there. `mlx-dpo fuse` does so."
    )


def _template_of_json_file(path: Path) -> Any:
    """The template in chat_template.json, if no file that tokenizers read has one; else None."""
    if not (path / CHAT_TEMPLATE_FILE).is_file() or (path / "chat_template.jinja").is_file():
        return None
    config = path / "tokenizer_config.json"
    if config.is_file() and read_json(config).get("chat_template"):
        return None
    template = read_json(path / CHAT_TEMPLATE_FILE).get("chat_template")
    named = {file.stem: file.read_text(encoding="utf-8") for file in path.glob(f"{NAMED_TEMPLATES_FOLDER}/*.jinja")}
    return {"default": template, **named} if named and isinstance(template, str) else template
