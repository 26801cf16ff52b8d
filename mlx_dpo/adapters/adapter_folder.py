"""Adapter folders in mlx-lm's format: reading them and loading them into a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_dpo.adapters.attach import attach_adapter, neutral_tensors, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.discovery.near_names import similar_path
from mlx_dpo.errors import UserError, Where
from mlx_dpo.settings.data_settings import FineTuneType
from mlx_dpo.utils.formatting import shell_command
from mlx_dpo.utils.json_files import read_json

ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE = "adapters.safetensors", "adapter_config.json"
USES_OF_REWARD_MODELS = "It can be used by score, evaluate, and label --judge."
REWARD_HEAD_FILE = "reward_head.safetensors"  # beside them, in the folder of a reward model


def read_adapter(folder: str | Path) -> tuple[AdapterSpec, Tensors]:
    """Read an mlx-lm adapter folder; return its spec and tensors.

    Raises:
        UserError: it is not an adapter folder, or is damaged.
    """
    return read_adapter_spec(folder), read_safetensors(Path(folder) / ADAPTER_WEIGHTS_FILE)


def read_adapter_spec(folder: str | Path) -> AdapterSpec:
    """What an mlx-lm adapter folder says is adapted.

    mlx-lm-lora's name for the fine-tune type (train_type) is read too.

    Raises:
        UserError: it is not such a folder, or its adapter_config.json lacks something.
    """
    path = _existing_folder(folder)
    if not (path / ADAPTER_CONFIG_FILE).is_file() or not (path / ADAPTER_WEIGHTS_FILE).is_file():
        hint = "An adapter folder holds adapter_config.json and adapters.safetensors."
        if (path / "adapter_model.safetensors").is_file():
            command = shell_command("mlx-dpo", "import", folder, "NEW_FOLDER")
            hint = f"This is one of PEFT's: `{command}` makes one of mlx-lm's of it."
        raise UserError("not an adapter folder", where=Where(str(folder)), hint=hint)
    file = path / ADAPTER_CONFIG_FILE
    config = read_json(file)
    lora = config.get("lora_parameters") or {}
    kind = config.get("fine_tune_type", config.get("train_type", "lora"))
    if kind not in get_args(FineTuneType):
        known = ", ".join(get_args(FineTuneType))
        raise UserError(f"{kind!r} is not one of {known}", where=Where(str(file)), field="fine_tune_type")
    _require_fields(file, config, lora, kind)
    try:
        return AdapterSpec(
            fine_tune_type=kind,
            num_layers=int(config["num_layers"]),
            rank=int(lora.get("rank", AdapterSpec.rank)),
            scale=float(lora.get("scale", AdapterSpec.scale)),
            dropout=float(lora.get("dropout", 0.0)),
            keys=tuple(lora["keys"]) if lora.get("keys") is not None else None,
            fuse_bits=None if config.get("fuse_bits") is None else int(config["fuse_bits"]),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"not an mlx-lm adapter config: {error}", where=Where(str(file))) from None


def _existing_folder(name: str | Path) -> Path:
    """An adapter's folder. Raises `UserError` if there is none of that name."""
    path = Path(name)
    if not path.is_dir():
        state = "this is a file" if path.exists() else "there is no such folder"
        hint = "Name an adapter folder; a run leaves one at its --adapter-path, `adapters` by default."
        hint = f"{similar_path(str(name))} {hint}".lstrip()
        raise UserError(f"no adapter: {state}", where=Where(str(name)), hint=hint)
    return path


def _require_fields(file: Path, config: Mapping[str, Any], lora: Any, kind: str) -> None:
    """Raises `UserError` if what decides the numbers is not in the file."""
    where = Where(str(file))
    if not isinstance(lora, Mapping):
        raise UserError("expected an object", where=where, field="lora_parameters")
    names = () if kind == "full" else ("rank", "scale")
    missing = [f"lora_parameters.{name}" for name in names if lora.get(name) is None]
    if config.get("num_layers") is None:
        missing.insert(0, "num_layers")
    if missing:
        hint = "Write them into the file, as the adapter was trained; num_layers is -1 where all blocks are adapted."
        raise UserError(f"not an mlx-lm adapter config: {', '.join(missing)} is missing", where=where, hint=hint)


def adapter_base_model(adapter_path: str | Path) -> str:
    """The model that an adapter folder says it was trained on. Raises `UserError` if it says none."""
    file = _existing_folder(adapter_path) / ADAPTER_CONFIG_FILE
    model = read_json(file).get("model")
    if not isinstance(model, str) or not model:
        hint = "Name the model with --model."
        raise UserError("does not say which model the adapter is for", where=Where(str(file)), hint=hint)
    return model


def adapter_digest(folder: str | Path) -> str:
    """A hexadecimal digest of an adapter folder's settings and weights. Raises `UserError` if they can't be read."""
    digest = hashlib.blake2b(digest_size=16)
    path = _existing_folder(folder)
    for file in (path / ADAPTER_CONFIG_FILE, *sorted(path.glob("*.safetensors"))):
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise UserError(f"can't be read: {error.strerror or error}", where=Where(str(file))) from None
    return digest.hexdigest()


def read_safetensors(file: Path) -> Tensors:
    """A safetensors file, read whole. Raises `UserError` if it is damaged."""
    try:
        tensors = cast(Tensors, mx.load(str(file)))
        mx.eval(tensors)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
    return tensors


def set_tensors(model: nn.Module, tensors: Mapping[str, mx.array], where: Where) -> None:
    """Copy an adapter's tensors into a model with attached adapters.

    Args:
        model: the model.
        tensors: the adapter's, by parameter name.
        where: the adapter's folder, for messages.

    Raises:
        UserError: names or shapes differ: the adapter is for another model.
    """
    own = trainable_tensors(model)
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            problem = "is not in this model" if name not in own else f"is {tensor.shape}, not {own[name].shape}, here"
            hint = "Give the --model that the adapter was trained on."
            raise UserError(f"this adapter is for another model: {name} {problem}", where=where, hint=hint)
    if lost := sorted(set(own) - set(tensors)):
        raise UserError(f"this adapter lacks {len(lost)} tensors of the model, {lost[0]} first", where=where)
    model.update(tree_unflatten(list(tensors.items())))


def load_adapter(
    model: nn.Module, folder: str | Path, *, lazy: bool = False, allow_reward_model: bool = False
) -> tuple[AdapterSpec, Tensors]:
    """Attach an adapter folder's layers to a model and load its tensors.

    Args:
        model: the base model, changed in place.
        folder: the adapter folder.
        lazy: do not evaluate the model's parameters.
        allow_reward_model: load the adapter of a reward model too, whose head is not.

    Returns:
        The adapter's spec, and tensors that restore the base model when they replace the adapter's: a fresh adapter's
        (lora_b zero, DoRA's magnitude the norm of the weights) or, for full fine-tuning, the model's own weights.

    Raises:
        UserError: it is not an adapter of this model, or not of a policy.
    """
    if not allow_reward_model:
        require_policy(folder)
    spec, tensors = read_adapter(folder)
    spec = attach_adapter(model, spec)
    base = trainable_tensors(model)
    set_tensors(model, tensors, Where(str(folder)))
    if not lazy:
        mx.eval(model.parameters())
    return spec, base


def apply_adapter(model: nn.Module, folder: str | Path | None) -> Tensors:
    """Load an adapter if a folder is given; return the tensors that restore the base model."""
    return neutral_tensors(model) if folder is None else load_adapter(model, folder)[1]


def adapter_config_json(spec: AdapterSpec, model: str) -> str:
    """Return the content of adapter_config.json: mlx-lm's settings, and the model that the adapter belongs to."""
    return json.dumps({"model": model, **spec.to_json()}, indent=4) + "\n"


def is_reward_model(folder: str | Path) -> bool:
    """Whether an adapter folder holds a reward head."""
    return (Path(folder) / REWARD_HEAD_FILE).is_file()


def require_policy(folder: str | Path) -> None:
    """Check that an adapter folder is one, and not of a reward model. Raises `UserError`."""
    read_adapter_spec(folder)
    refuse_reward_model(folder, "which scores completions and writes none", USES_OF_REWARD_MODELS)


def refuse_reward_model(folder: str | Path, purpose: str, hint: str, field: str = "adapter_path") -> None:
    """Refuse an adapter folder that holds a reward model where a policy is needed.

    Args:
        folder: the adapter folder.
        purpose: why it can't be used, after "this is a reward model, ".
        hint: what to do.
        field: the setting that names the folder.

    Raises:
        UserError: it is a reward model.
    """
    if is_reward_model(folder):
        raise UserError(f"this is a reward model, {purpose}", where=Where(str(folder)), field=field, hint=hint)
