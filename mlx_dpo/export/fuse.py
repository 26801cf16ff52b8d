"""`fuse`: an adapter folded into its model, saved as a model folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten

from mlx_dpo.errors import UserError, Where
from mlx_dpo.model.loading import load_adapter, load_model, load_tokenizer


def fuse(model: str, adapter_path: str | Path, save_path: str | Path, *, dequantize: bool = False) -> Path:
    """Fold an adapter into its model, as mlx-lm's fuse does, and save a folder that mlx-lm loads.

    Args:
        model: model folder or Hub id the adapter was trained on.
        adapter_path: mlx-lm adapter folder.
        save_path: the new folder; it must not exist or be empty.
        dequantize: leave every weight in the base's float type instead of rounding to its bits again.

    Raises:
        UserError: something given is wrong.
    """
    target = Path(save_path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("this exists already", where=Where(str(target)), hint="Choose another --save-path.")
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    load_adapter(loaded.model, adapter_path)
    fold(loaded.model, dequantize)
    if dequantize:
        for key in ("quantization", "quantization_config"):
            loaded.config.pop(key, None)
    partial = target.with_name(f".{target.name}.partial")
    try:
        _save(partial, loaded.path, loaded.model, tokenizer, loaded.config)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(target))) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def fold(model: nn.Module, dequantize: bool) -> None:
    """Replace every adapted layer by one layer of the base's float type, rounded to its bits unless `dequantize`."""
    from mlx_lm.utils import dequantize_model

    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]
    for name, module in adapted:  # one at a time, so that few float copies exist at once
        fused = module.fuse(dequantize=dequantize)
        _cast(fused, _float_type(module))
        mx.eval(fused.parameters())
        model.update_modules(tree_unflatten([(name, fused)]))
    if dequantize:
        dequantize_model(model)


def _float_type(adapted: nn.Module) -> mx.Dtype:
    base = getattr(adapted, "linear", None) or adapted.embedding
    if "scales" not in base:
        return base.weight.dtype
    floats = mx.issubdtype(base.scales.dtype, mx.floating)  # mxfp4's scales are bytes
    return base.scales.dtype if floats else mx.bfloat16


def _cast(module: nn.Module, dtype: mx.Dtype) -> None:
    """DoRA's float32 magnitude would widen a bfloat16 layer."""
    module.update(
        tree_map(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p, module.parameters())
    )


def _save(folder: Path, source: Path, model: nn.Module, tokenizer: object, config: dict) -> None:
    from mlx_lm.utils import save

    save(folder, str(source), model, tokenizer, config, donate_model=False)
