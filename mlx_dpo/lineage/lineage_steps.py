"""The lineage of what each command makes: a run's adapter, an imported or exported one, a fused model, a pushed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_dpo.config_files import read_yaml
from mlx_dpo.lineage.lineage_file import (
    BaseModel,
    Lineage,
    Publication,
    read_lineage,
    write_lineage,
)
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.lineage.weights_digest import weights_digest
from mlx_dpo.utils.json_files import read_json


def run_lineage(base: BaseModel, loss: str, init_adapter: str | None) -> Lineage:
    """The lineage of the adapter that a run trains.

    Args:
        base: the model.
        loss: the setting `loss`.
        init_adapter: folder of the adapter that training starts from.
    """
    start = None
    if init_adapter is not None:
        start = read_adapter_lineage(init_adapter) or Lineage("adapter", None)
        start = replace(start, base=None if base.is_same(start.base) else start.base)
    return Lineage("adapter", base, loss_names(loss), starts_from=start)


def fused_lineage(adapter_path: str | Path, base: BaseModel) -> Lineage:
    """The lineage of a model that an adapter was fused into.

    Args:
        adapter_path: the adapter's folder.
        base: the model.
    """
    adapter = read_adapter_lineage(adapter_path) or Lineage("adapter", base)
    return _onto(adapter, replace(adapter, kind="fused"), base)


def converted_lineage(adapter: Lineage, base: BaseModel, kind: Any) -> Lineage:
    """The lineage of an adapter in another format, which names another model as its base.

    Args:
        adapter: the lineage of the adapter.
        base: the model that it is for in the other format.
        kind: adapter or peft.
    """
    return _onto(adapter, replace(adapter, kind=kind), base)


def _onto(adapter: Lineage, result: Lineage, base: BaseModel) -> Lineage:
    """`result` with a new base, and the one that the adapter was trained on, if that is another."""
    trained_on = adapter.trained_on or adapter.base
    if trained_on is not None and base.is_same(trained_on):
        # The same weights under another name: what is known of either holds for both.
        return replace(result, base=base if base.repo_id else trained_on, trained_on=None)
    return replace(result, base=base, trained_on=trained_on)


def read_adapter_lineage(folder: str | Path, *, may_be_hub_id: bool = True) -> Lineage | None:
    """The lineage of an adapter's folder: its lineage.json, or what the other files of an earlier version say.

    Args:
        folder: of a run, a checkpoint, or an adapter of mlx-lm.
        may_be_hub_id: whether a model's name that is not a folder here may be treated as a Hub id, if there is no
            lineage.json.

    Returns:
        None if the folder does not say which model the adapter is for.

    Raises:
        UserError: a file is damaged.
    """
    path = Path(folder)
    is_checkpoint = path.absolute().parent.name == "checkpoints"
    for candidate in (path, path.absolute().parent.parent) if is_checkpoint else (path,):
        if lineage := read_lineage(candidate):
            return lineage
    if (path / "config.yaml").is_file():
        config = read_yaml(path / "config.yaml")
        base = identify_model(str(config.get("model") or ""), may_be_hub_id=may_be_hub_id)
        return run_lineage(base, str(config.get("loss") or ""), config.get("init_adapter"))
    if (path / "adapter_config.json").is_file():
        model = read_json(path / "adapter_config.json").get("model")
        return Lineage("adapter", identify_model(model, may_be_hub_id=may_be_hub_id)) if model else None
    return None


def base_of_adapter(adapter: Lineage | None, model: str, folder: Path) -> BaseModel:
    """What is known of the model that an adapter is put on, by the model itself and by the adapter's lineage.

    Args:
        adapter: the adapter's lineage, if it has one.
        model: folder or Hub id, as the user named it.
        folder: where the model was loaded from.
    """
    base = identify_model(model, folder)
    recorded = adapter.base if adapter else None
    is_known_by_adapter = recorded is not None and recorded.repo_id and recorded.weights and base.is_same(recorded)
    return recorded if recorded and is_known_by_adapter and not base.repo_id else base


def current_lineage(lineage: Lineage) -> Lineage:
    """A recorded lineage with what has become known of the base since: its folder may have been pushed to the Hub."""
    return replace(lineage, base=lineage.base and _current_base(lineage.base))


def _current_base(base: BaseModel) -> BaseModel:
    if base.repo_id is None and base.weights and base.name and Path(base.name).expanduser().is_dir():
        now = identify_model(base.name)
        if now.repo_id and now.is_same(base):
            return replace(base, repo_id=now.repo_id, commit=now.commit)
    return base


def record_publication(folder: str | Path, repo_id: str, commit: str) -> None:
    """Record in a fused model's lineage.json that it is on the Hub, so that adapters trained on it can name it.

    Args:
        folder: the model's folder; others stay as they are.
        repo_id: the repository.
        commit: the commit with its files.

    Raises:
        OSError: the file can't be written.
    """
    lineage = read_lineage(folder)
    if lineage is not None and lineage.kind == "fused":
        published = Publication(repo_id, commit, weights_digest(Path(folder)))
        if lineage.published != published:
            write_lineage(folder, replace(lineage, published=published))


def loss_names(loss: str) -> tuple[str, ...]:
    """The names of the losses in the setting `loss`: ("sigmoid", "sft") for sigmoid=0.8,sft=0.2.

    A loss of the user's own, FILE.py:NAME, is NAME: where its file is stays on this machine.
    """
    terms = [term.strip().rsplit("=", 1)[0] for term in loss.split(",")]
    return tuple(term.rpartition(":")[2] for term in terms if term)
