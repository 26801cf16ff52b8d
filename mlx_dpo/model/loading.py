"""Models and adapters from disk or the Hub, with every failure a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.errors import UserError, Where
from mlx_dpo.hub import HubName, client, hub_errors

Tensors = dict[str, mx.array]


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, its config.json, and the folder they came from."""

    model: nn.Module
    config: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class AdapterSpec:
    """How a model is adapted; what adapter_config.json says, under mlx-lm's names, and one of ours.

    Attributes:
        fuse_bits: not None where the adapter is trained as it will be fused, see `on_grid`; mlx-lm doesn't look at it.
    """

    fine_tune_type: str
    num_layers: int
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    fuse_bits: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of adapter_config.json."""
        lora = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            lora["keys"] = list(self.keys)  # type: ignore[assignment]
        said = {"fine_tune_type": self.fine_tune_type, "num_layers": self.num_layers, "lora_parameters": lora}
        return said if self.fuse_bits is None else {**said, "fuse_bits": self.fuse_bits}


def model_folder(name: str) -> Path:
    """The local folder of a model: `name` itself, or its snapshot from the Hub. Raises `UserError`."""
    if not name:
        raise UserError("no model given", field="model", hint="Name a model folder or Hub id with --model.")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError("not a model folder: there is no config.json in it", where=Where(name))
        return path
    if path.exists():
        raise UserError("--model takes a model folder or a Hub id, and this is a file", where=Where(name))
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    repo = HubName.parse(name)
    if repo is None or repo.part:
        hint = "Hub ids are like user/name, or user/name@revision."
        raise UserError("no such folder, and it is not a Hub id either", where=Where(name), hint=hint)
    with hub_errors(name, before="no such folder, and "):
        fetch = client().snapshot_download
        return Path(fetch(repo.repo_id, revision=repo.revision, allow_patterns=DEFAULT_ALLOW_PATTERNS))


@contextmanager
def _as_user_error(path: Path, hint: str | None = None) -> Iterator[None]:
    """Whatever mlx-lm or transformers trips over in a folder a user named is said as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        lines = text.splitlines()
        reason = lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines[:3])
        if "trust_remote_code" in text:
            reason = "it needs code of its own to be run, and mlx-dpo runs no code that comes with a model"
        if isinstance(error, KeyError):
            reason = f"{reason} is missing from its config.json"
        raise UserError(f"this model can't be loaded: {reason[:400]}", where=Where(str(path)), hint=hint) from error


def load_model(name: str, *, lazy: bool = False) -> LoadedModel:
    """Load an mlx-lm model (4-bit, 8-bit, mxfp4, bf16, float32), without its tokenizer. Raises `UserError`.

    Args:
        lazy: leave every weight on disk until it is used.
    """
    from mlx_lm.utils import load_model as mlx_lm_load_model

    path = model_folder(name)
    read_json(path / "config.json")
    with _as_user_error(path, "Is the download complete, and is it a model that mlx-lm runs?"):
        model, config = mlx_lm_load_model(path, lazy=lazy)
    return LoadedModel(model, config, path)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder or Hub id, without its weights. Raises `UserError`."""
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

    path = model_folder(name)
    read_json(path / "config.json")
    with _as_user_error(path, "Its tokenizer files may be missing or damaged."):
        no_code = {"trust_remote_code": False}  # or transformers would ask on the terminal
        return mlx_lm_load_tokenizer(path, no_code, eos_token_ids=load_config(path).get("eos_token_id"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the file is missing", where=Where(str(path))) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not valid JSON: {error}", where=Where(str(path))) from None
    if not isinstance(value, dict):
        raise UserError("a JSON object was expected", where=Where(str(path)))
    return value


def attach(model: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    """Freeze the model and add what `spec` says is trained. Returns the spec with layers and keys resolved."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    try:
        model.freeze()
        total = len(model.layers)
    except AttributeError as error:
        raise UserError(f"mlx-lm can't freeze this model to train a part of it: {error}") from error
    count = total if spec.num_layers < 0 else min(spec.num_layers, total)
    if spec.fine_tune_type == "full":
        if spec.fuse_bits is not None:
            raise UserError("full fine-tuning leaves nothing to fuse", field="fuse_bits", hint="Leave it out.")
        if any(hasattr(m, "bits") for _, m in model.named_modules()):
            hint = "Use --fine-tune-type lora or dora, or a model that is not quantized."
            raise UserError("full fine-tuning can't train quantized weights", field="fine_tune_type", hint=hint)
        for layer in model.layers[total - count :]:
            layer.unfreeze()
        return AdapterSpec("full", count)
    keys = _adaptable_keys(model, spec)
    dora = spec.fine_tune_type == "dora"
    parameters = {"rank": spec.rank, "scale": spec.scale, "dropout": spec.dropout, "keys": set(keys)}
    try:
        linear_to_lora_layers(model, count, parameters, use_dora=dora)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"mlx-lm can't attach {spec.fine_tune_type} to this model: {error}",
            hint="Name the layers to adapt with --lora-keys, or use --fine-tune-type lora.",
        ) from error
    if not tree_flatten(model.trainable_parameters()):
        names = sorted({k for layer in model.layers for k, m in layer.named_modules() if hasattr(m, "weight")})
        hint = "The layers of this model: " + ", ".join(names[:20])
        raise UserError("no layer of this model matches --lora-keys", field="lora_keys", hint=hint)
    if spec.fuse_bits is not None:
        from mlx_dpo.model.on_grid import put_on_grid

        put_on_grid(model, spec.fuse_bits)
    return replace(spec, num_layers=count, keys=keys)


def _adaptable_keys(model: nn.Module, spec: AdapterSpec) -> tuple[str, ...]:
    """Names, inside a block, of the layers to adapt: those asked for, or all linear ones that the type can do."""
    if spec.keys is not None:
        return spec.keys
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds: tuple[type, ...] = (nn.Linear, nn.QuantizedLinear)
    if spec.fine_tune_type == "lora":
        kinds += (SwitchLinear, QuantizedSwitchLinear)
    return tuple(
        sorted(
            {
                name
                for layer in model.layers
                for name, module in layer.named_modules()
                if isinstance(module, kinds) or (spec.fine_tune_type == "lora" and hasattr(module, "to_lora"))
            }
        )
    )


def read_adapter(folder: str | Path) -> tuple[AdapterSpec, Tensors]:
    """An mlx-lm adapter folder. Raises `UserError` where it is not one."""
    path = Path(folder)
    if not (path / "adapter_config.json").is_file() or not (path / "adapters.safetensors").is_file():
        hint = "An adapter folder holds adapter_config.json and adapters.safetensors."
        if (path / "adapter_model.safetensors").is_file():
            hint = f"This is one of PEFT's: `mlx-dpo import {folder} NEW_FOLDER` makes one of mlx-lm's of it."
        raise UserError("not an adapter folder", where=Where(str(folder)), hint=hint)
    config = read_json(path / "adapter_config.json")
    lora = config.get("lora_parameters") or {}
    try:
        spec = AdapterSpec(
            fine_tune_type=config.get("fine_tune_type", "lora"),
            num_layers=int(config["num_layers"]),
            rank=int(lora.get("rank", 8)),
            scale=float(lora.get("scale", 20.0)),
            dropout=float(lora.get("dropout", 0.0)),
            keys=tuple(lora["keys"]) if lora.get("keys") is not None else None,
            fuse_bits=None if config.get("fuse_bits") is None else int(config["fuse_bits"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = Where(str(path / "adapter_config.json"))
        raise UserError(f"not an mlx-lm adapter config: {error}", where=where) from None
    return spec, read_tensors(path / "adapters.safetensors")


def model_of(adapter_path: str | Path) -> str:
    """The model that an adapter folder says it was trained on. Raises `UserError` where it says none."""
    file = Path(adapter_path) / "adapter_config.json"
    model = read_json(file).get("model")
    if not isinstance(model, str) or not model:
        hint = "Name the model with --model."
        raise UserError("does not say which model the adapter is for", where=Where(str(file)), hint=hint)
    return model


def read_tensors(file: Path) -> Tensors:
    """A safetensors file, read whole. Raises `UserError` where it is damaged."""
    try:
        tensors = cast(Tensors, mx.load(str(file)))
        mx.eval(tensors)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
    return tensors


def put_tensors(model: nn.Module, tensors: Mapping[str, mx.array], where: Where) -> None:
    """Put an adapter's tensors into the attached model. Raises `UserError` if they are another model's."""
    own = trainable(model)
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            problem = "is not in this model" if name not in own else f"is {tensor.shape}, not {own[name].shape}, here"
            hint = "Give the --model that the adapter was trained on."
            raise UserError(f"this adapter is for another model: {name} {problem}", where=where, hint=hint)
    if lost := sorted(set(own) - set(tensors)):
        raise UserError(f"this adapter lacks {len(lost)} tensors of the model, {lost[0]} first", where=where)
    model.update(tree_unflatten(list(tensors.items())))


def load_adapter(model: nn.Module, folder: str | Path, *, lazy: bool = False) -> tuple[AdapterSpec, Tensors]:
    """Attach an adapter folder's layers and tensors. Returns its spec, and the tensors that undo it.

    The latter are the fresh adapter's (lora_b zero, DoRA's magnitude the weights' own norm) or, for full fine-tuning,
    the model's own weights: with them in place it is the base model.
    """
    spec, tensors = read_adapter(folder)
    spec = attach(model, spec)
    base = trainable(model)
    put_tensors(model, tensors, Where(str(folder)))
    if not lazy:
        mx.eval(model.parameters())
    return spec, base


def base_tensors(model: nn.Module) -> Tensors:
    """The adapter tensors that would make the adapters on a model do nothing; empty where it has none."""
    tensors = {}
    for name, module in model.named_modules():
        if "lora_b" in module:
            tensors[f"{name}.lora_b"] = mx.zeros_like(module.lora_b)
        if "m" in module:  # DoRA's
            tensors[f"{name}.m"] = mx.linalg.norm(module._dequantized_weight().astype(mx.float32), axis=1)
    return tensors


def put_adapter(model: nn.Module, folder: str | Path | None) -> Tensors:
    """Put an adapter on, if any; returns the tensors that stand for the model without what is on it."""
    return base_tensors(model) if folder is None else load_adapter(model, folder)[1]


def trainable(model: nn.Module) -> Tensors:
    """The trained tensors by name."""
    return dict(tree_flatten(model.trainable_parameters()))
