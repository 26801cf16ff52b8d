"""A lineage in one line, such as "DPO of SFT of ./gemma"."""

from __future__ import annotations

from mlx_dpo.lineage.lineage_file import BaseModel, Lineage

_NAMES = {"sigmoid": "DPO", "reward": "reward model"}  # of losses, if the method's is another


def describe_lineage(lineage: Lineage) -> str:
    """Describe how something was made, the last stage first."""
    stages, start = [_stage(lineage)], lineage.starts_from
    while start is not None:
        stages.append(_stage(start))
        start = start.starts_from
    trained_on = f" (trained on {describe_model(lineage.trained_on)})" if lineage.trained_on else ""
    return " of ".join([*stages, describe_model(lineage.base)]) + trained_on


def describe_model(base: BaseModel | None) -> str:
    """Describe a model by its id on the Hub, by its lineage, or else by its name."""
    if base is None:
        return "an unknown model"
    if base.repo_id:
        return f"{base.repo_id} ({describe_lineage(base.lineage)})" if base.lineage else base.repo_id
    if base.lineage:
        return describe_lineage(base.lineage)
    name = base.name or "a model in memory"
    return f"{name} (quantized from {base.quantized_from})" if base.quantized_from else name


def _stage(lineage: Lineage) -> str:
    return "+".join(_NAMES.get(name, name.replace("_", "-").upper()) for name in lineage.methods) or "a fine-tune"
