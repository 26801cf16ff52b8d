"""The facts about the base model in a card: its Hub id, license, languages and lineage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.lineage.lineage_file import BaseModel, shareable_lineage
from mlx_dpo.lineage.lineage_text import describe_lineage
from mlx_dpo.lineage.model_identity import CARD_FILE, hub_card_metadata
from mlx_dpo.utils.hub_client import read_card_metadata

_INHERITED = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model.

    Attributes:
        repo_id: its id on the Hub, or that of the model that it is a quantized copy of; None if it is not known to be
            there.
        revision: the requested revision; None for the default branch.
        display_name: a name for texts; never a local path.
        inherited_metadata: card metadata that also holds for derived models: license, license_name, license_link and
            language.
        lineage: what it is derived from, in one line, if it was fine-tuned with mlx-dpo; else empty.
    """

    repo_id: str | None
    revision: str | None
    display_name: str
    inherited_metadata: dict[str, Any]
    lineage: str = ""


def describe_base_model(base: BaseModel, *, fetch_card: bool = False) -> BaseModelInfo:
    """Collect the facts about a base model: Hub id, license, languages and lineage.

    Only a model of the Hub or a quantized and otherwise unmodified copy of one has a Hub id: an adapter of a
    fine-tuned model does not work with the model which that was fine-tuned from.

    Args:
        base: the model.
        fetch_card: download the model's card from the Hub if it is not on this machine.
    """
    repo_id = base.repo_id or base.quantized_from
    folder = Path(base.name).expanduser()
    is_here = bool(base.name) and folder.is_dir()
    local_name = _plain_text((folder.resolve() if is_here else folder).name) or "a model in memory"
    lineage = describe_lineage(shareable_lineage(base.lineage)) if base.lineage else ""
    return BaseModelInfo(repo_id, base.revision, repo_id or local_name, _inherited(base, fetch_card), lineage)


def _plain_text(name: str) -> str:
    """A name without characters that Markdown or HTML interpret."""
    return re.sub(r"[\s`<>]+", " ", name).strip()


def _inherited(base: BaseModel | None, fetch_card: bool) -> dict[str, Any]:
    """The inherited metadata of a model's card, or else of the card of what it is derived from."""
    while base is not None:
        if metadata := {name: value for name, value in _card_metadata(base, fetch_card).items() if name in _INHERITED}:
            return {name: value for name, value in metadata.items() if value}
        base = base.lineage.base if base.lineage else None
    return {}


def _card_metadata(base: BaseModel, fetch_card: bool) -> dict[str, Any]:
    folder, repo_id = Path(base.name).expanduser(), base.repo_id or base.quantized_from
    if base.name and folder.is_dir():
        return read_card_metadata(folder / CARD_FILE)
    return hub_card_metadata(repo_id, base.revision, fetch=fetch_card) if repo_id else {}
