"""The inputs of a model card: the training record, the base model and the lineage of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.adapters.adapter_folder import is_reward_model
from mlx_dpo.errors import UserError
from mlx_dpo.export.card.base_model import BaseModelInfo, describe_base_model
from mlx_dpo.export.card.training_record import read_training_record, settings_on_hub
from mlx_dpo.export.folder_kind import FolderKind, detect_folder_kind, read_mapping_file
from mlx_dpo.export.local_paths import strip_local_paths
from mlx_dpo.export.peft.peft_format import is_peft_reward_model
from mlx_dpo.lineage.lineage_file import BaseModel, Lineage, read_lineage, shareable_lineage
from mlx_dpo.lineage.lineage_steps import current_lineage, run_lineage
from mlx_dpo.lineage.lineage_text import describe_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.utils.hub_client import HubRepoRef


@dataclass(frozen=True)
class CardInputs:
    """What is known about an adapter or a model; the card omits what is unknown, which is empty here.

    Attributes:
        kind: what the folder holds.
        name: name of the repository or folder.
        repo_id: the repository that it is or will be pushed to.
        base: the model that was trained.
        record: the run's training record, see `training_record`.
        lineage: description of the lineage, in one line.
        has_curves: whether curves.png is next to the card.
        is_quantized: whether a model's weights are quantized by MLX.
        is_reward_model: whether an adapter has the head of a reward model.
    """

    kind: FolderKind
    name: str
    repo_id: str | None
    base: BaseModelInfo
    record: Mapping[str, Any]
    lineage: str = ""
    has_curves: bool = False
    is_quantized: bool = False
    is_reward_model: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The run's config.yaml, with local paths reduced to their last part."""
        return strip_local_paths(_recorded_config(self.record))

    @property
    def data_name(self) -> str:
        """The training data's name: a Hub name or the name of a file."""
        return str(self.config.get("data") or "rows in memory")

    @property
    def hub_dataset(self) -> HubRepoRef | None:
        """The Hub dataset that the run was trained on, if it was one."""
        data = str(_recorded_config(self.record).get("data") or "")
        return HubRepoRef.parse(data) if "data" in _hub_settings(self.record) else None

    @property
    def metrics_before(self) -> Mapping[str, float]:
        """Held-out metrics before the first step; empty if there are none."""
        return self.record.get("before") or {}

    @property
    def metrics_after(self) -> Mapping[str, float]:
        """Held-out metrics after the last step; empty if there are none."""
        return self.record.get("after") or {}


def collect_card_inputs(
    folder: str | Path, repo_id: str | None = None, *, fetch_base_card: bool = False, base_model: str | None = None
) -> CardInputs:
    """Collect what is known about the folder of a finished run or of a fused model.

    Args:
        folder: an adapter's or a model's folder.
        repo_id: the repository it is pushed to, if known.
        fetch_base_card: download the base model's card if it is not on this machine.
        base_model: Hub id of the base model; default: the recorded one.

    Raises:
        UserError: the folder holds neither an adapter nor a model, or `base_model` is not a Hub id.
    """
    root = Path(folder)
    kind, record = detect_folder_kind(root), read_training_record(root)
    lineage = _find_lineage(root, kind, record)
    base = _base_on_hub(base_model) if base_model else _recorded_base(kind, lineage)
    return CardInputs(
        kind=kind,
        name=repo_id.split("/")[-1] if repo_id else root.resolve().name,
        repo_id=repo_id,
        base=describe_base_model(base, fetch_card=fetch_base_card),
        record=record,
        lineage=describe_lineage(shareable_lineage(lineage)) if lineage else "",
        is_quantized=kind == "model" and "quantization" in read_mapping_file(root / "config.json"),
        is_reward_model=is_reward_model(root) or (kind == "peft" and is_peft_reward_model(root)),
    )


def _find_lineage(root: Path, kind: FolderKind, record: Mapping[str, Any]) -> Lineage | None:
    """The folder's lineage; if an earlier version wrote it, what its other files say."""
    if lineage := read_lineage(root):
        return current_lineage(lineage)
    if config := _recorded_config(record):
        base = identify_model(str(config.get("model") or ""), may_be_hub_id="model" in _hub_settings(record))
        return run_lineage(base, str(config.get("loss") or ""), config.get("init_adapter"))
    name = read_mapping_file(root / "adapter_config.json").get("base_model_name_or_path") if kind == "peft" else None
    return Lineage("peft", identify_model(str(name))) if name else None


def _recorded_base(kind: FolderKind, lineage: Lineage | None) -> BaseModel:
    """The model that an adapter was trained on or, in PEFT's format, is loaded onto; or that it was fused into."""
    if lineage is None:
        return BaseModel("")
    base = lineage.trained_on or lineage.base if kind == "adapter" else lineage.base
    return base or BaseModel("")


def _base_on_hub(name: str) -> BaseModel:
    repo = HubRepoRef.parse(name)
    if repo is None or repo.config_and_split:
        hint = "Hub ids are like user/name, or user/name@revision."
        raise UserError(f"{name} is not a Hub id", field="base_model", hint=hint)
    return BaseModel(name, repo.repo_id, repo.revision)


def _recorded_config(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(record.get("config") or {})


def _hub_settings(record: Mapping[str, Any]) -> list[str]:
    recorded = record.get("on_hub")
    return settings_on_hub(_recorded_config(record)) if recorded is None else recorded
