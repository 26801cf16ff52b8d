"""What is known of a model by its folder and its name: where it is on the Hub, and what it is derived from.

A card's `base_model` alone says that a model is derived from another, not how: mlx-lm writes the same line when it
converts a model as when it fuses an adapter into one. Only `base_model_relation: quantized` says that it is a copy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.lineage.lineage_file import BaseModel, read_lineage
from mlx_dpo.lineage.weights_digest import weights_digest
from mlx_dpo.utils.hub_client import HubRepoRef, hub_api, quiet_hub, read_card_metadata, translate_hub_errors

CARD_FILE = "README.md"
_CACHE_FOLDER = re.compile(r"models--(?P<user>.+)--(?P<name>.+)")


def identify_model(name: str, folder: Path | None = None, *, may_be_hub_id: bool = True) -> BaseModel:
    """Find out what is known of a model, without guesses and without requests to the Hub.

    Args:
        name: the value of --model: a folder or a Hub id.
        folder: where a Hub id was downloaded to; None if that is not known.
        may_be_hub_id: whether a name that is not a folder may be treated as a Hub id.

    Raises:
        UserError: its lineage.json can't be read.
    """
    local = Path(name).expanduser()
    if name and local.is_dir():
        return _identify_folder(name, local)
    repo = HubRepoRef.parse(name) if may_be_hub_id else None
    if repo is None:
        return BaseModel(name)
    if folder is None:
        return BaseModel(name, repo.repo_id, repo.revision)
    return BaseModel(
        name,
        repo.repo_id,
        repo.revision,
        commit=_snapshot_commit(folder),
        quantized_from=quantized_from(read_card_metadata(folder / CARD_FILE)),
        weights=weights_digest(folder),
        lineage=read_lineage(folder),
    )


def _identify_folder(name: str, folder: Path) -> BaseModel:
    lineage, weights = read_lineage(folder), weights_digest(folder)
    repo_id, commit = _cached_repo_id(folder), _snapshot_commit(folder)
    published = lineage.published if lineage else None
    if repo_id is None and published and published.weights and published.weights == weights:
        repo_id, commit = published.repo_id, published.commit
    copied = None if lineage else quantized_from(read_card_metadata(folder / CARD_FILE))
    return BaseModel(
        name,
        repo_id,
        commit=commit if repo_id else None,
        quantized_from=copied,
        weights=weights,
        lineage=lineage,
    )


def quantized_from(metadata: dict[str, Any]) -> str | None:
    """The Hub id of the model that a card declares to be quantized from; None if it declares no such thing."""
    return named_base(metadata) if metadata.get("base_model_relation") == "quantized" else None


def named_base(metadata: dict[str, Any]) -> str | None:
    """The Hub id of the one base model that a card names, whatever it was made from that by."""
    names = metadata.get("base_model")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    repo = HubRepoRef.parse(name) if isinstance(name, str) else None
    return repo.repo_id if repo else None


def hub_card_metadata(repo_id: str, revision: str | None = None, *, fetch: bool = False) -> dict[str, Any]:
    """The metadata of a model's card on the Hub; empty if it can't be had.

    Args:
        repo_id: the model.
        revision: None for the default branch.
        fetch: download the card if it is not on this machine.
    """
    try:
        with quiet_hub(), translate_hub_errors(repo_id):
            download = hub_api().hf_hub_download
            card = download(repo_id, CARD_FILE, revision=revision, local_files_only=not fetch)
    except UserError:
        return {}
    return read_card_metadata(Path(card))


def _cached_repo_id(folder: Path) -> str | None:
    """The id of a model in huggingface_hub's cache, from its snapshot folder."""
    path = folder.absolute()
    match = _CACHE_FOLDER.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    return f"{match['user']}/{match['name']}" if match else None


def _snapshot_commit(folder: Path) -> str | None:
    """The commit of a snapshot folder in huggingface_hub's cache."""
    return folder.absolute().name if _cached_repo_id(folder) else None
