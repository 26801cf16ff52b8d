"""What a mistyped model, file or dataset may have been meant to be: the hints of errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_dpo.discovery.hub_cache import cached_repos
from mlx_dpo.discovery.installed_models import complete_model_names, find_in_lm_studio
from mlx_dpo.errors import UserError
from mlx_dpo.utils.formatting import closest, did_you_mean
from mlx_dpo.utils.hub_client import HubRepoRef

MAX_NAMES = 3  # in a list of examples


@contextmanager
def suggest_models(name: str) -> Iterator[None]:
    """Put a similar model on this machine into the hint of a `UserError` that is raised inside.

    Args:
        name: the value of --model.
    """
    try:
        yield
    except UserError as error:
        _put_first(error, _model_suggestion(name))
        raise


@contextmanager
def suggest_datasets(name: str) -> Iterator[None]:
    """Put a similar file or folder, or a similar dataset in the Hub cache, into the hint of a `UserError`.

    Args:
        name: a file, a folder or a Hub dataset, as the user typed it.
    """
    try:
        yield
    except UserError as error:
        repo = HubRepoRef.parse(name)
        datasets = cached_repos("dataset")
        if repo is None or repo.repo_id not in datasets:
            names = [*paths_beside(name), *datasets]
            _put_first(error, did_you_mean(name if repo is None else repo.repo_id, names))
        raise


def similar_path(name: str) -> str:
    """Suggest a file or folder beside a path that does not exist; empty if there is none of a similar name."""
    return did_you_mean(name, paths_beside(name), cutoff=0.7)


def paths_beside(name: str) -> list[str]:
    """The paths in the folder of a path, in the way that it was typed, without hidden ones."""
    parent = name.rpartition("/")[0] + "/" if "/" in name else ""
    with suppress(OSError, ValueError, RuntimeError):
        folder = Path(parent).expanduser() if parent else Path()
        return [parent + path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return []


def models_to_name() -> str:
    """A sentence with some of the models on this machine, for those who named none."""
    names = complete_model_names()
    if not names:
        return "`mlx-dpo models` says where it looks for models; `mlx-dpo demo` needs none."
    listed = ", ".join(f"`{name}`" for name in names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"On this machine: {listed}{more}; `mlx-dpo models` lists them with what fits."


def _model_suggestion(name: str) -> str:
    if folder := find_in_lm_studio(name):
        return f"LM Studio has it: --model {folder}"
    repo = HubRepoRef.parse(name)
    typed, names = (repo.repo_id if repo else name), complete_model_names()
    if typed in names:
        return ""
    folders = [path for path in paths_beside(name) if (Path(path).expanduser() / "config.json").is_file()]
    match = closest(typed, [*names, *folders]) or _closest_by_last_part(typed, names)
    return f"Did you mean `{match}`?" if match else ""


def _closest_by_last_part(name: str, names: Iterable[str]) -> str | None:
    """The name whose last part is similar to that of another, such as Qwen3-4B-4bit for mlx-community/Qwen3-4B-4bit."""
    by_part = {known.rpartition("/")[2]: known for known in names}
    match = closest(name.rpartition("/")[2], by_part)
    return by_part[match] if match else None


def _put_first(error: UserError, suggestion: str) -> None:
    if suggestion:
        error.amend(hint=f"{suggestion} {error.hint or ''}".rstrip())
