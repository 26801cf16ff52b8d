"""The base model as a card describes it: its Hub id, license and languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, quiet_hub, read_card_metadata, translate_hub_errors

_CACHE_FOLDER = re.compile(r"models--(?P<user>.+)--(?P<name>.+)")
_INHERITED = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model.

    Attributes:
        repo_id: its id on the Hub; None if it is not known to be there.
        revision: the requested revision; None for the default branch.
        display_name: a name for texts; never a local path.
        inherited_metadata: card metadata that also holds for derived models: license, license_name, license_link and
            language.
    """

    repo_id: str | None
    revision: str | None
    display_name: str
    inherited_metadata: dict[str, Any]


def describe_base_model(model: str, *, may_be_hub_id: bool = True, fetch_card: bool = False) -> BaseModelInfo:
    """Find out what is known about a base model, without guesses.

    Args:
        model: the value of --model: a folder or a Hub id.
        may_be_hub_id: whether a name that is no folder may be taken for a Hub id.
        fetch_card: download the model's card from the Hub if it is not on this machine.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        metadata = read_card_metadata(folder / "README.md")
        repo_id = _cached_repo_id(folder) or _first_repo_id(metadata.get("base_model"))
        return BaseModelInfo(repo_id, None, repo_id or _plain_text(folder.resolve().name), _inherited(metadata))
    repo = HubRepoRef.parse(model) if may_be_hub_id else None
    if repo is None:
        return BaseModelInfo(None, None, _plain_text(folder.name) or "a model in memory", {})
    return BaseModelInfo(repo.repo_id, repo.revision, repo.repo_id, _inherited(_hub_metadata(repo, fetch_card)))


def _plain_text(name: str) -> str:
    """A name without characters that Markdown or HTML interpret."""
    return re.sub(r"[\s`<>]+", " ", name).strip()


def _cached_repo_id(folder: Path) -> str | None:
    """The id of a model in huggingface_hub's cache, from its snapshot folder."""
    for part in folder.absolute().parts:
        if match := _CACHE_FOLDER.fullmatch(part):
            return f"{match['user']}/{match['name']}"
    return None


def _first_repo_id(base_model: Any) -> str | None:
    first = base_model[0] if isinstance(base_model, list) and base_model else base_model
    repo = HubRepoRef.parse(first) if isinstance(first, str) else None
    return repo.repo_id if repo else None


def _hub_metadata(repo: HubRepoRef, fetch_card: bool) -> dict[str, Any]:
    try:
        with quiet_hub(), translate_hub_errors(repo.repo_id):
            download = hub_api().hf_hub_download
            card = download(repo.repo_id, "README.md", revision=repo.revision, local_files_only=not fetch_card)
    except UserError:  # without the base's card, only the license and the languages are missing
        return {}
    return read_card_metadata(Path(card))


def _inherited(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in _INHERITED if metadata.get(name)}
