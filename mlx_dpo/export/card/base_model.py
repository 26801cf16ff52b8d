"""What the model that was trained is to the Hub: its id, license and languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, quiet_hub

_IN_CACHE = re.compile(r"models--(?P<user>.+)--(?P<name>.+)")


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model.

    Attributes:
        repo_id: on the Hub, or None where it is not known to be there.
        revision: the one that was asked for.
        name: what to call it; never a path of this machine.
        copied: metadata that is the derived model's as well: license, license_name, license_link, language.
    """

    repo_id: str | None
    revision: str | None
    display_name: str
    inherited_metadata: dict[str, Any]


def describe_base_model(model: str, *, may_be_hub_id: bool = True, fetch_card: bool = False) -> BaseModelInfo:
    """The base by the name it was given as --model: a folder or a Hub id. Nothing unknown is guessed.

    on_hub: whether the name may be one of the Hub's.
    ask_hub: look for its card on the Hub, where it is not on this machine.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        data = _metadata(folder / "README.md")
        repo_id = _cached_id(folder) or _first_id(data.get("base_model"))
        return BaseModelInfo(repo_id, None, repo_id or _plain(folder.resolve().name), _copied(data))
    name = HubRepoRef.parse(model) if may_be_hub_id else None
    if name is None:
        return BaseModelInfo(None, None, _plain(folder.name) or "a model in memory", {})
    return BaseModelInfo(name.repo_id, name.revision, name.repo_id, _copied(_from_hub(name, fetch_card)))


def _plain(name: str) -> str:
    """A name that Markdown leaves alone."""
    return re.sub(r"[\s`<>]+", " ", name).strip()


def _cached_id(folder: Path) -> str | None:
    """The id of a snapshot in huggingface_hub's cache."""
    for part in folder.absolute().parts:
        if match := _IN_CACHE.fullmatch(part):
            return f"{match['user']}/{match['name']}"
    return None


def _first_id(value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else value
    name = HubRepoRef.parse(first) if isinstance(first, str) else None
    return name.repo_id if name else None


def _from_hub(name: HubRepoRef, ask_hub: bool) -> dict[str, Any]:
    try:
        with quiet_hub():
            fetch = hub_api().hf_hub_download
            card = fetch(name.repo_id, "README.md", revision=name.revision, local_files_only=not ask_hub)
    except Exception:  # a card that can't be had costs the license line and nothing else
        return {}
    return _metadata(Path(card))


def _metadata(readme: Path) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    try:
        text = readme.read_text(encoding="utf-8")
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except Exception:  # somebody else's file: whatever is wrong with it, we know nothing of the base
        return {}


def _copied(data: dict[str, Any]) -> dict[str, Any]:
    names = ("license", "license_name", "license_link", "language")
    return {name: data[name] for name in names if data.get(name)}
