"""How prompts are rendered for an adapter: as in the run that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.cli.config_options import RENDERING_SETTINGS
from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import Where


def rendering_config(adapter_path: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The settings that render prompts: those of the adapter's run, if there is one, overridden by flags.

    Raises:
        UserError: its config.yaml can't be read, or a value is wrong.
    """
    from mlx_dpo.config_files import CONFIG_FILE, read_yaml

    file = None if adapter_path is None else adapter_path / CONFIG_FILE
    values = read_yaml(file) if file is not None and file.is_file() else {}
    own = {name: values[name] for name in RENDERING_SETTINGS if name in values}
    return TrainConfig.from_mapping({**TrainConfig.from_mapping(own, Where(str(file))).to_mapping(), **flags})
