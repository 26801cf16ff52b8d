"""Detect what a folder holds: an adapter of mlx-lm or PEFT, or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

from mlx_dpo.adapters.adapter_folder import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from mlx_dpo.errors import UserError, Where

FolderKind = Literal["adapter", "peft", "model"]


def detect_folder_kind(folder: str | Path) -> FolderKind:
    """Detect what a folder holds.

    Raises:
        UserError: it is neither an adapter nor a model.
    """
    path = Path(folder)
    if (path / ADAPTER_CONFIG_FILE).is_file():
        if (path / ADAPTER_WEIGHTS_FILE).is_file():
            return "adapter"
        if (path / "adapter_model.safetensors").is_file():
            return "peft"
    elif (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        return "model"
    hint = "Push a finished run's folder (adapters.safetensors, adapter_config.json) or a fused model's (config.json)."
    raise UserError("the folder holds neither an adapter nor a model", where=Where(str(folder)), hint=hint)


def read_mapping_file(file: Path) -> dict[str, Any]:
    """Read the mapping in a YAML or JSON file; empty if it holds something else.

    Raises:
        UserError: the file can't be read or parsed.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"can't be read: {str(error).splitlines()[0]}", where=Where(str(file))) from None
    return value if isinstance(value, dict) else {}
