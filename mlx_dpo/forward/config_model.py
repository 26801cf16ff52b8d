"""A model built from its config.json alone: layers with shapes and data types, and weights that are never computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import download_files
from mlx_dpo.utils.hub_client import quiet_hub
from mlx_dpo.utils.json_files import read_json

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
DEFAULT_DTYPE = "bfloat16"  # where a config names none


def fetch_config(name: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Read a model's config, and the names of its tensors where it has an index; no weights are fetched.

    Args:
        name: a folder or Hub id.

    Raises:
        UserError: there is no config that can be read.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError("not a model folder: there is no config.json in it", where=Where(name))
        config, index = folder / CONFIG, folder / INDEX
    else:
        config, index = _download(name)
    return read_json(config), frozenset(read_json(index).get("weight_map", ()) if index.is_file() else ())


def _download(name: str) -> tuple[Path, Path]:
    with quiet_hub():
        folder = download_files(name, [CONFIG, INDEX])
    if not (folder / CONFIG).is_file():
        raise UserError("there is no config.json in this repository, so it is no model", where=Where(name))
    return folder / CONFIG, folder / INDEX


def model_classes(config: dict[str, Any], name: str = CONFIG) -> tuple[Any, Any]:
    """The classes in mlx-lm of a model and of its settings.

    Args:
        config: the config, as `fetch_config` returns it.
        name: what messages call the model.

    Raises:
        UserError: mlx-lm has no such model type.
    """
    from mlx_lm.utils import _get_classes

    where = Where(name)
    if "model_type" not in config:
        raise UserError("its config.json names no model_type, so it is not known how it is built", where=where)
    try:
        model_class, args_class = _get_classes(config)
    except ValueError:
        message = f"mlx-lm knows no model type {config['model_type']!r}"
        hint = "It can't be trained: choose another model, or upgrade mlx-lm."
        raise UserError(message, where=where, hint=hint) from None
    return model_class, args_class


def build_model(config: dict[str, Any], tensor_names: frozenset[str] = frozenset(), *, name: str = CONFIG) -> nn.Module:
    """Build the model that mlx-lm would load; its parameters are lazy, and must not be evaluated.

    Args:
        config: the config, as `fetch_config` returns it.
        tensor_names: names in the model's files; they tell which layers are quantized.
        name: what messages call the model.

    Raises:
        UserError: mlx-lm has no such model type, or the config lacks something.
    """
    where = Where(name)
    model_class, args_class = model_classes(config, name)
    try:
        model: nn.Module = model_class(args_class.from_dict(config))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"no model of type {config['model_type']!r} can be built from its config.json: {error}"
        raise UserError(message, where=where, hint="Is the file complete?") from error
    _tie_embeddings(model, config, tensor_names)
    _set_dtype(model, _dtype(config, where))
    _quantize(model, config, tensor_names, where)
    return model


def _tie_embeddings(model: nn.Module, config: dict[str, Any], tensor_names: frozenset[str]) -> None:
    """Remove the head of models that mlx-lm ties by what is in the files, such as Gemma 3."""
    has_head = any(name.endswith("lm_head.weight") for name in tensor_names)
    if has_head or not (tensor_names or config.get("tie_word_embeddings", True)):  # transformers' default
        return
    for _, module in model.named_modules():
        if "lm_head" in module and getattr(module, "tie_word_embeddings", None) is False:
            module.sanitize({})


def _set_dtype(model: nn.Module, dtype: mx.Dtype) -> None:
    is_cast = getattr(model, "cast_predicate", lambda name: True)
    tensors = tree_flatten(model.parameters())
    floating = [(name, v) for name, v in tensors if mx.issubdtype(v.dtype, mx.floating) and is_cast(name)]
    model.update(tree_unflatten([(name, v.astype(dtype)) for name, v in floating]))


def _dtype(config: dict[str, Any], where: Where) -> mx.Dtype:
    text_config = config.get("text_config") or {}
    places = [config, text_config]
    name = next((str(place[key]) for place in places for key in ("dtype", "torch_dtype") if place.get(key)), None)
    dtype = getattr(mx, (name or DEFAULT_DTYPE).removeprefix("torch."), None)
    if not isinstance(dtype, mx.Dtype) or not mx.issubdtype(dtype, mx.floating):
        raise UserError(f"its config.json has the data type {name!r}, which mlx does not train", where=where)
    return dtype


def _quantize(model: nn.Module, config: dict[str, Any], tensor_names: frozenset[str], where: Where) -> None:
    settings = config.get("quantization") or config.get("quantization_config")
    if not settings:
        return
    if "bits" not in settings or "group_size" not in settings or "quant_method" in settings:
        method = settings.get("quant_method", "another library")
        raise UserError(
            f"its weights are quantized by {method}, whose sizes in mlx don't follow from the config",
            where=where,
            hint="Use a model that was quantized by mlx_lm.convert, or plan with the weights and --data.",
        )
    nn.quantize(
        model,
        group_size=settings["group_size"],
        bits=settings["bits"],
        mode=settings.get("mode", "affine"),
        class_predicate=_quantized_layers(model, settings, tensor_names),
    )


def _quantized_layers(
    model: nn.Module, settings: dict[str, Any], tensor_names: frozenset[str]
) -> Callable[[str, nn.Module], Any]:
    """Whether a layer is quantized, or its own settings, by its path: as `mlx_lm.convert` decides without an index."""
    by_model = getattr(model, "quant_predicate", None)

    def decide(path: str, module: nn.Module) -> Any:
        if path in settings:
            return settings[path]
        if not hasattr(module, "to_quantized"):
            return False
        if f"{path}.weight" in tensor_names:
            return f"{path}.scales" in tensor_names
        divides = module.weight.shape[-1] % settings["group_size"] == 0
        return divides and (by_model is None or by_model(path, module))

    return decide
