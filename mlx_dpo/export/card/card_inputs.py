"""What a model card is rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.export.card.base_model import BaseModelInfo, describe_base_model
from mlx_dpo.export.card.training_record import read_training_record, settings_on_hub
from mlx_dpo.export.folder_kind import FolderKind, detect_folder_kind, read_mapping_file
from mlx_dpo.export.local_paths import strip_local_paths
from mlx_dpo.utils.hub_client import HubRepoRef


@dataclass(frozen=True)
class CardInputs:
    """What is known about an adapter or a model; the card omits what is unknown, which is empty here.

    Attributes:
        kind: what the folder holds.
        name: of the repository or folder.
        repo_id: the repository that it is or will be pushed to.
        base: the model that was trained.
        record: the run's training record, see `training_record`.
        has_curves: whether curves.png is next to the card.
        is_quantized: whether a model's weights are quantized by MLX.
    """

    kind: FolderKind
    name: str
    repo_id: str | None
    base: BaseModelInfo
    record: Mapping[str, Any]
    has_curves: bool = False
    is_quantized: bool = False

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
        """Validation metrics before the first step; empty if there are none."""
        return self.record.get("before") or {}

    @property
    def metrics_after(self) -> Mapping[str, float]:
        """Validation metrics after the last step; empty if there are none."""
        return self.record.get("after") or {}


def collect_card_inputs(folder: str | Path, repo_id: str | None = None, *, fetch_base_card: bool = False) -> CardInputs:
    """Collect what is known about the folder of a finished run or of a fused model.

    Args:
        folder: an adapter's or a model's folder.
        repo_id: the repository it is pushed to, if known.
        fetch_base_card: download the base model's card if it is not on this machine.

    Raises:
        UserError: the folder holds neither an adapter nor a model.
    """
    root = Path(folder)
    kind, record = detect_folder_kind(root), read_training_record(root)
    base = describe_base_model(
        str(_recorded_config(record).get("model") or ""),
        may_be_hub_id="model" in _hub_settings(record),
        fetch_card=fetch_base_card,
    )
    return CardInputs(
        kind=kind,
        name=repo_id.split("/")[-1] if repo_id else root.resolve().name,
        repo_id=repo_id,
        base=base,
        record=record,
        is_quantized=kind == "model" and "quantization" in read_mapping_file(root / "config.json"),
    )


def _recorded_config(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(record.get("config") or {})


def _hub_settings(record: Mapping[str, Any]) -> list[str]:
    recorded = record.get("on_hub")
    return settings_on_hub(_recorded_config(record)) if recorded is None else recorded
