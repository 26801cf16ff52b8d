"""The model that transformers loads an exported adapter onto: the one it was trained on, as far as that is known."""

from __future__ import annotations

from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import LoadedModel
from mlx_dpo.lineage.lineage_file import BaseModel
from mlx_dpo.lineage.lineage_text import describe_model
from mlx_dpo.lineage.model_identity import CARD_FILE, hub_card_metadata, named_base, quantized_from
from mlx_dpo.utils.hub_client import read_card_metadata
from mlx_dpo.utils.json_files import read_json


def transformers_base_model(base: BaseModel, loaded: LoadedModel) -> BaseModel:
    """Find the model that transformers is to load, for one that an adapter was trained on.

    It is, where that is known, the model that the base was quantized from; else the base itself, if it is on the Hub
    and not quantized by mlx, or a folder of which nothing else is known.

    Args:
        base: what is known of the model that the adapter was trained on.
        loaded: that model.

    Raises:
        UserError: it was fine-tuned or converted, and is not on the Hub in a form that transformers loads.
    """
    metadata = read_card_metadata(loaded.path / CARD_FILE)
    by_mlx = "quantization" in read_json(loaded.path / "config.json")
    if base.repo_id and by_mlx and not metadata:
        metadata = hub_card_metadata(base.repo_id, base.revision, fetch=True)
    original = base.quantized_from or (quantized_from(metadata) if base.repo_id else None)
    if original:
        return BaseModel(original, original)
    if base.repo_id and not by_mlx:
        return BaseModel(base.name if base.revision else base.repo_id, base.repo_id, base.revision)
    claimed = named_base(metadata)
    if base.repo_id is None and base.lineage is None and claimed is None:
        return base
    message, hint = _problem_and_hint(base, by_mlx, claimed)
    raise UserError(message, where=Where(str(loaded.path)), field="base_model", hint=hint)


def _problem_and_hint(base: BaseModel, by_mlx: bool, claimed: str | None) -> tuple[str, str]:
    """What is wrong, and what to do.

    Args:
        base: the model that the adapter was trained on.
        by_mlx: whether it is quantized by mlx.
        claimed: the base that its card names, without saying that it is a copy.
    """
    if base.lineage:
        problem = f"the adapter was trained on a model that is fine-tuned itself ({describe_model(base)})"
        if by_mlx:
            hint = "Name that model, fused with `--bits none`, with --base-model: a folder or a Hub id."
            return f"{problem} and quantized by mlx, so transformers can't load it", hint
        return (
            f"{problem}, and not on the Hub",
            "Name it with --base-model: its folder, or its Hub id once it is pushed.",
        )
    if base.repo_id:
        problem = f"the adapter was trained on {base.repo_id}, quantized by mlx, so transformers can't load it"
    else:
        problem = "the adapter was trained on a folder made from another model, by fine-tuning or only by conversion"
    if claimed is None:
        return problem, "Name the model that it was quantized from with --base-model."
    return problem, f"If it is {claimed} but for the conversion: --base-model {claimed}. Else name that fine-tune."
