"""Check LoRA settings against an initial adapter or full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mlx_dpo.adapters.adapter_folder import read_adapter_spec
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError

LORA_SETTINGS = ("rank", "scale", "dropout", "lora_keys")
# Compared once the model is known, which resolves them: a number of blocks may be larger than there are.
_RESOLVED_BY_MODEL = ("num_layers", "lora_keys")


def adapter_settings(config: TrainConfig) -> dict[str, Any]:
    """The LoRA settings that differ from their defaults, by name."""
    names = ("lora_keys" if field.name == "keys" else field.name for field in fields(AdapterSpec))
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(TrainConfig, name)}


def fine_tune_type(config: TrainConfig) -> str:
    """The type that a run trains: an initial adapter's own, if there is one."""
    return read_adapter_spec(config.init_adapter).fine_tune_type if config.init_adapter else config.fine_tune_type


def require_settings_of_adapter(config: TrainConfig, requested: Mapping[str, Any]) -> None:
    """Check that the settings of a run agree with its initial adapter, except for those that need the model.

    Args:
        config: the run's settings.
        requested: settings that were requested, those with the default's value too.

    Raises:
        UserError: a setting contradicts the adapter, or has no effect in full fine-tuning.
    """
    requested = {**adapter_settings(config), **requested}
    if fine_tune_type(config) == "full" and (unused := [name for name in LORA_SETTINGS if name in requested]):
        raise UserError(
            "full fine-tuning has no adapter that this would apply to", field=unused[0], hint="Leave it out."
        )
    if config.init_adapter:
        early = {name: value for name, value in requested.items() if name not in _RESOLVED_BY_MODEL}
        require_equal_settings(early, read_adapter_spec(config.init_adapter), config.init_adapter)


def require_equal_settings(requested: Mapping[str, Any], spec: AdapterSpec, folder: str) -> None:
    """Check that settings are those of an adapter.

    Args:
        requested: settings by name; settings that an adapter does not have are ignored.
        spec: what the adapter folder holds.
        folder: its name.

    Raises:
        UserError: a setting differs from the adapter's, so it would have no effect.
    """
    own = {**{field.name: getattr(spec, field.name) for field in fields(spec)}, "lora_keys": spec.keys}
    for name, value in requested.items():
        if name not in own:
            continue
        same = set(value or ()) == set(own[name] or ()) if name == "lora_keys" else value == own[name]
        if not same:
            theirs = ", ".join(own[name]) if isinstance(own[name], tuple) else own[name]
            state = f"has {theirs}" if theirs is not None else "was trained without it"
            hint = "An initial adapter brings its own: leave the setting out, or train without --init-adapter."
            raise UserError(f"{value} conflicts with the adapter in {folder}, which {state}", field=name, hint=hint)
