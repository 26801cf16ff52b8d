"""An mlx-lm adapter layer by layer, from which PEFT's and llama.cpp's adapters are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from mlx_dpo.adapters.adapter_folder import read_adapter, set_tensors
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import LoadedModel, load_model
from mlx_dpo.utils.formatting import shell_command
from mlx_dpo.utils.tensor_names import block_prefix

MAX_LISTED_LAYERS = 3


@dataclass(frozen=True)
class LoraFactors:
    """The update of one linear layer: W + scale (A B)^T; with DoRA, each row is then scaled to its magnitude.

    Attributes:
        lora_a: A [inputs, rank].
        lora_b: B [rank, outputs].
        magnitude: DoRA's magnitude [outputs]; None for plain LoRA.
    """

    lora_a: mx.array
    lora_b: mx.array
    magnitude: mx.array | None = None

    @property
    def rank(self) -> int:
        """Columns of A."""
        return self.lora_a.shape[1]


@dataclass(frozen=True)
class AdapterFactors:
    """An adapter, and its model with unread weights.

    Attributes:
        loaded_model: the model with the adapter attached.
        spec: rank, scale and kind of all layers.
        layers: the factors of every adapted linear layer, by its name in the model.
    """

    loaded_model: LoadedModel
    spec: AdapterSpec
    layers: dict[str, LoraFactors]


def load_adapter_factors(
    model: str, adapter_path: str | Path, require_supported: Callable[[LoadedModel], object]
) -> AdapterFactors:
    """Load the adapter folder of a run or of mlx-lm.

    Args:
        model: folder or Hub id of the model that the adapter was trained on.
        adapter_path: the adapter's folder.
        require_supported: raises `UserError` for a model that the format can't hold adapters of, whatever their layers.

    Raises:
        UserError: the adapter does not fit the model, or adapts layers that are not linear.
    """
    spec, tensors = read_adapter(adapter_path)
    where = Where(str(adapter_path))
    if spec.fine_tune_type == "full":
        hint = "`mlx-dpo fuse` writes a model folder from it."
        raise UserError(
            "this run trained the model's own weights, so there is no adapter to convert", where=where, hint=hint
        )
    loaded = load_model(model, lazy=True)
    try:
        require_supported(loaded)
    except UserError as error:
        hint = "\n".join(filter(None, [alternatives_hint(adapter_path, ()), error.hint]))
        raise UserError(error.message, where=error.where, hint=hint) from None
    spec = attach_adapter(loaded.model, spec)
    set_tensors(loaded.model, tensors, where)
    adapted = {name: module for name, module in loaded.model.named_modules() if "lora_a" in module}
    other = [name for name, module in adapted.items() if not isinstance(module, (LoRALinear, DoRALinear))]
    reason = "only mlx-lm's adapters can hold layers that are not linear (experts, embeddings)"
    reject_layers(other, reason, where, alternatives_hint(adapter_path, set(adapted) - set(other)))
    layers = {name: LoraFactors(module.lora_a, module.lora_b, module.get("m")) for name, module in adapted.items()}
    return AdapterFactors(loaded, spec, layers)


def alternatives_hint(adapter_path: str | Path, exportable: Iterable[str]) -> str:
    """Return a hint for an adapter with layers that a format can't hold.

    Args:
        adapter_path: the adapter's folder.
        exportable: its layers that the format can hold, by their names in the model.
    """
    fuse = shell_command("mlx-dpo", "fuse", "--adapter-path", adapter_path, "--save-path", "FOLDER")
    hint = f"`{fuse}` makes one model of both, whatever its layers"
    names = {name: block_prefix(name) for name in exportable}
    keys = sorted({name.removeprefix(f"{prefix}.") for name, prefix in names.items() if prefix})
    return f"{hint}; or train only the others: --lora-keys {','.join(keys)}" if keys else f"{hint}."


def reject_layers(names: list[str], reason: str, where: Where, hint: str | None = None) -> None:
    """Raise an error that lists layers, if there are any.

    Args:
        names: the layers; the message lists the first `MAX_LISTED_LAYERS`.
        reason: the message before the list.
        where: the file or folder that they come from.
        hint: what to do.

    Raises:
        UserError: there is a layer.
    """
    if names:
        more = f" and {len(names) - MAX_LISTED_LAYERS} more" if len(names) > MAX_LISTED_LAYERS else ""
        raise UserError(f"{reason}: {', '.join(names[:MAX_LISTED_LAYERS])}{more}", where=where, hint=hint)
