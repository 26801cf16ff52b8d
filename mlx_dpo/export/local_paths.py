"""Remove paths of this machine from what is published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.adapters.adapter_folder import ADAPTER_CONFIG_FILE
from mlx_dpo.config_files import CONFIG_FILE
from mlx_dpo.export.folder_kind import read_mapping_file
from mlx_dpo.lineage.lineage_file import LINEAGE_FILE, lineage_json, read_lineage, shareable_lineage
from mlx_dpo.lineage.lineage_steps import current_lineage

_FOLDERS = re.compile(r"(?<![^\s,=])(?:~|\.\.)?/(?:[^\s,=/]*/)*")  # of absolute paths, and of those from ~ or ..
_PATH_SETTINGS = {
    *("loss", "model", "data", "valid_data", "init_adapter", "reference", "adapter_path", "base_model_name_or_path"),
    *("prompts", "judge", "judge_model"),
}


def strip_local_path(value: str) -> str:
    """Reduce local paths in a value to their last part; Hub names and other words stay as they are."""
    path = Path(value).expanduser()
    try:
        if path.is_absolute() or path.exists():
            return path.name
    except OSError:  # too long for a file name
        pass
    return _FOLDERS.sub("", value)  # --data=/x/pairs.jsonl, sigmoid,/x/mine.py:loss


def strip_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Reduce local paths in the settings of a config to their last part."""
    return {
        name: strip_local_path(value) if name in _PATH_SETTINGS and isinstance(value, str) and value else value
        for name, value in config.items()
    }


def shareable_content(file: Path | bytes) -> Path | bytes:
    """A file's content for the Hub: configs are rewritten without local paths, other files stay as they are."""
    if isinstance(file, bytes):
        return file
    if file.name == LINEAGE_FILE and (lineage := read_lineage(file.parent)):
        return lineage_json(shareable_lineage(current_lineage(lineage))).encode()
    if file.name not in (CONFIG_FILE, ADAPTER_CONFIG_FILE):
        return file
    values = strip_local_paths(read_mapping_file(file))
    if file.suffix == ".json":
        return (json.dumps(values, indent=4, ensure_ascii=False) + "\n").encode()
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
