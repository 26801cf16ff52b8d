"""lineage.json: what an adapter or a model is derived from, in the folders that mlx-dpo writes.

    {"format": "mlx-dpo lineage", "version": 1, "kind": "fused", "methods": ["sigmoid"], "base": {
        "name": "./gemma-sft", "weights": "9f…", "lineage": {"kind": "fused", "methods": ["sft"], "base": {
            "name": "mlx-community/gemma-3-1b-it-4bit", "repo_id": "mlx-community/gemma-3-1b-it-4bit", …}}}}

A run writes it next to config.yaml, `fuse` into the fused model, `import` and `export --format peft` into the adapter.
It goes to the Hub with them, without paths of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.atomic_write import atomic_write
from mlx_dpo.utils.hub_client import HubRepoRef
from mlx_dpo.utils.json_files import read_json

LINEAGE_FILE = "lineage.json"
LineageKind = Literal["adapter", "peft", "fused"]
_FORMAT, _VERSION = "mlx-dpo lineage", 1
_MAX_DEPTH = 100  # nested stages; files come from the Hub too


@dataclass(frozen=True)
class BaseModel:
    """A model that something is derived from, as it was when that was made.

    Attributes:
        name: as the user named it: a folder or a Hub id; empty for a model in memory without a name.
        repo_id: its id on the Hub; None if it is not known to be there.
        revision: the requested revision; None for the default branch.
        commit: the Hub's commit that it was loaded from.
        quantized_from: Hub id of the model that it is a quantized and otherwise unmodified copy of, by its card.
        weights: see `weights_digest`.
        lineage: what the model itself is derived from, by its own lineage.json.
    """

    name: str
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    quantized_from: str | None = None
    weights: str | None = None
    lineage: Lineage | None = None

    def is_same(self, other: BaseModel | None) -> bool:
        """Whether it has the weights of another, as far as is known: by digests, or else by names."""
        if other is None:
            return False
        if self.weights and other.weights:
            return self.weights == other.weights
        return self.name == other.name or (self.repo_id is not None and self.repo_id == other.repo_id)


@dataclass(frozen=True)
class Publication:
    """Where on the Hub a model was pushed to.

    Attributes:
        repo_id: the repository.
        commit: the commit.
        weights: digest of what was pushed; weights that have changed since are not there.
    """

    repo_id: str
    commit: str
    weights: str | None


@dataclass(frozen=True)
class Lineage:
    """What an adapter or a model is derived from.

    Attributes:
        kind: adapter (of a run, or imported), peft (an adapter in PEFT's format), or fused (a model).
        base: the model that the adapter is for, or was fused into. In `starts_from`, None is the same model.
        methods: names of the losses that it was trained with; empty if unknown.
        starts_from: the adapter that training started from.
        trained_on: the model that the adapter was trained on, if that is another than `base`.
        published: where a model was pushed to; never pushed itself.
    """

    kind: LineageKind
    base: BaseModel | None
    methods: tuple[str, ...] = ()
    starts_from: Lineage | None = None
    trained_on: BaseModel | None = None
    published: Publication | None = None


def read_lineage(folder: str | Path) -> Lineage | None:
    """Read the lineage.json of a folder; None if there is none of mlx-dpo's.

    Raises:
        UserError: it is damaged, or of a later version.
    """
    file = Path(folder) / LINEAGE_FILE
    if not file.is_file():
        return None
    values, where = read_json(file), Where(str(file))
    if values.get("format") != _FORMAT:
        return None  # of another program
    if values.get("version") != _VERSION:
        hint = "Upgrade mlx-dpo."
        raise UserError(f"written by a later version of mlx-dpo ({values.get('version')})", where=where, hint=hint)
    try:
        return _lineage_from_mapping(values, 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"damaged: {error}", where=where, hint="Restore it, or delete it.") from None


def write_lineage(folder: str | Path, lineage: Lineage) -> None:
    """Write the lineage.json of a folder atomically.

    Raises:
        OSError: it can't be written.
    """
    with atomic_write(Path(folder) / LINEAGE_FILE) as partial:
        partial.write_text(lineage_json(lineage), encoding="utf-8")


def lineage_json(lineage: Lineage) -> str:
    """The content of lineage.json."""
    values = {"format": _FORMAT, "version": _VERSION, **_lineage_to_mapping(lineage)}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def shareable_lineage(lineage: Lineage) -> Lineage:
    """The lineage without paths of this machine, and without where the model itself was pushed to."""

    def share(base: BaseModel | None) -> BaseModel | None:
        if base is None:
            return None
        is_hub_name = base.repo_id is not None and base.name.startswith(base.repo_id)
        name = base.name if is_hub_name else base.repo_id or Path(base.name).resolve().name
        return replace(base, name=name, lineage=base.lineage and shareable_lineage(base.lineage))

    return replace(
        lineage,
        base=share(lineage.base),
        trained_on=share(lineage.trained_on),
        starts_from=lineage.starts_from and shareable_lineage(lineage.starts_from),
        published=None,
    )


def _lineage_to_mapping(lineage: Lineage) -> dict[str, Any]:
    published = lineage.published
    values = {
        "kind": lineage.kind,
        "methods": list(lineage.methods),
        "base": lineage.base and _base_to_mapping(lineage.base),
        "starts_from": lineage.starts_from and _lineage_to_mapping(lineage.starts_from),
        "trained_on": lineage.trained_on and _base_to_mapping(lineage.trained_on),
        "published": published and dict(vars(published)),
    }
    return {name: value for name, value in values.items() if value is not None}


def _base_to_mapping(base: BaseModel) -> dict[str, Any]:
    values = {**vars(base), "lineage": base.lineage and _lineage_to_mapping(base.lineage)}
    return {name: value for name, value in values.items() if value is not None}


def _lineage_from_mapping(values: Mapping[str, Any], depth: int) -> Lineage:
    if depth > _MAX_DEPTH:
        raise ValueError("too many nested stages")
    if values["kind"] not in get_args(LineageKind):
        raise ValueError(f"kind {values['kind']!r} is not one of {', '.join(get_args(LineageKind))}")
    bases = {name: _base_from_mapping(values.get(name), depth) for name in ("base", "trained_on")}
    published = values.get("published")
    return Lineage(
        kind=values["kind"],
        methods=tuple(_text(method) for method in values.get("methods") or ()),
        starts_from=values.get("starts_from") and _lineage_from_mapping(values["starts_from"], depth + 1),
        published=published and Publication(_repo_id(published["repo_id"]), **_texts(published, "commit", "weights")),
        **bases,
    )


def _base_from_mapping(values: Mapping[str, Any] | None, depth: int) -> BaseModel | None:
    if values is None:
        return None
    lineage = values.get("lineage")
    return BaseModel(
        name=_text(values["name"]),
        repo_id=values.get("repo_id") and _repo_id(values["repo_id"]),
        quantized_from=values.get("quantized_from") and _repo_id(values["quantized_from"]),
        lineage=lineage and _lineage_from_mapping(lineage, depth + 1),
        **_texts(values, "revision", "commit", "weights"),
    )


def _texts(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: None if values.get(name) is None else _text(values[name]) for name in names}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _repo_id(value: Any) -> str:
    repo = HubRepoRef.parse(_text(value))
    if repo is None or repo.repo_id != value:
        raise ValueError(f"{value!r} is not a Hub id")
    return repo.repo_id
