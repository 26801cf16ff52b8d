"""Estimates of `plan --config-only` on disk: counting the activations of a large model takes seconds.

One small file for a config.json, the names of the model's tensors and the settings, in ~/.cache/mlx-dpo/estimates. A
file that is damaged, or of other code, is not used and is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mlx_dpo.config import TrainConfig
from mlx_dpo.forward.config_model import fetch_config
from mlx_dpo.forward.path_cache import own_code_digest
from mlx_dpo.training.config_planner import ConfigEstimate, estimate_from_config
from mlx_dpo.training.policy_setup import memory_limit
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.utils.checked_file import read_checked, write_checked

_OWN_CODE = ("training", "forward", "adapters", "data")  # packages that an estimate goes through


def estimate_cache_folder() -> Path:
    """Where the files are."""
    return cache_folder("estimates")


def list_estimate_files() -> list[Path]:
    """All files of the cache."""
    return sorted(estimate_cache_folder().glob("*.json"))


def cached_estimate(config: TrainConfig, lengths: Sequence[int], *, compute: bool = True) -> ConfigEstimate | None:
    """What `estimate_from_config` returns, from the cache if it is there.

    Args:
        config: the run's settings; the model is a folder.
        lengths: lengths of pairs in tokens.
        compute: whether to estimate what is not in the cache.

    Returns:
        The estimate; None if it is not in the cache and is not to be computed.

    Raises:
        UserError: as `estimate_from_config`.
    """
    key = _key(config, lengths)
    path = estimate_cache_folder() / f"{key}.json"
    if (values := read_checked(path, key)) is not None:
        return ConfigEstimate.from_mapping(values)
    if not compute:
        return None
    estimate = estimate_from_config(config, lengths)
    write_checked(path, key, estimate.to_mapping())
    return estimate


def _key(config: TrainConfig, lengths: Sequence[int]) -> str:
    """A digest of all that an estimate depends on."""
    model_config, tensor_names = fetch_config(config.model)
    settings = {name: value for name, value in config.to_mapping().items() if name != "model"}
    versions = [version("mlx"), version("mlx-lm"), own_code_digest(_OWN_CODE)]
    parts = [model_config, sorted(tensor_names), settings, list(lengths), memory_limit(config), versions]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
