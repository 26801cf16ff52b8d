"""Config files: reading, writing, and flags on top of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.config import TrainConfig
from mlx_dpo.discovery.near_names import similar_path
from mlx_dpo.errors import UserError, Where

CONFIG_FILE = "config.yaml"  # in the folder of a run and of a checkpoint


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML config file.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    where = Where(str(path))
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such config file", where=where, hint=similar_path(str(path)) or None) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file can't be read: {error}", where=where) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or "it can't be parsed"
        raise UserError(f"not valid YAML: {problem}", where=Where(str(path), line)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError("a config file must consist of `key: value` lines", where=where)
    return values


def load_config(file: str | Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The config of a YAML file, if one is given, overridden by flags.

    Raises:
        UserError: a key or a value is wrong; the message names the file if the mistake is in it.
    """
    from_file = {} if file is None else read_yaml(file)
    where = None if file is None else Where(str(file))
    TrainConfig.from_mapping(from_file, where)  # errors in the file name the file
    return TrainConfig.from_mapping({**{str(k).replace("-", "_"): v for k, v in from_file.items()}, **flags})


def dump_yaml(config: TrainConfig) -> str:
    """The config as YAML text, which `read_yaml` reads back."""
    return yaml.safe_dump(config.to_mapping(), sort_keys=False, allow_unicode=True)
