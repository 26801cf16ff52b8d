"""Settings of the model, its adapters, and the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlx_dpo.config_fields import setting

FineTuneType = Literal["lora", "dora", "full"]
Overlong = Literal["truncate", "drop", "error"]
TrainOn = Literal["all", "last"]
BadRows = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained, and on which rows. The attributes are described by their help texts."""

    model: str = setting(
        "",
        "Model",
        "Folder of an mlx-lm model, or its Hub id user/name[@revision], in any precision: 4-bit, mxfp4, bf16.",
    )
    fine_tune_type: FineTuneType = setting(
        "lora",
        "Model",
        "lora: small and fast. dora: closer to full, about a third slower. full: all weights inside the blocks.",
    )
    num_layers: int = setting(
        -1, "Model", "Train the last N layers; -1 for all. Fewer layers train faster and change less.", low=-1
    )
    rank: int = setting(8, "Model", "Rank of the adapters. For preferences, 8 to 32 is enough.", low=1)
    scale: float = setting(20.0, "Model", "Factor on the adapters, as in mlx-lm; alpha / rank in PEFT.", low=0)
    dropout: float = setting(0.0, "Model", "Dropout inside the adapters while training.", low=0, high=0.999)
    lora_keys: list[str] | None = setting(
        None,
        "Model",
        "Layers to adapt, as named inside a block (self_attn.q_proj,...). Default: all linear ones except MoE routers.",
    )
    fuse_bits: int | None = setting(
        None,
        "Model",
        "Train adapters that can be fused at the base model's own bits (such as 4) without loss.",
        low=2,
        high=8,
    )
    tensor_parallel: bool = setting(
        False,
        "Model",
        "Split the weights of a model too large for one machine over all ranks. Without it, pairs are split.",
        free=True,
    )
    init_adapter: str | None = setting(
        None, "Model", "Start from this adapter folder, which is then the reference too."
    )

    data: str = setting(
        "",
        "Data",
        "Preference pairs: file, folder with train.jsonl, - (stdin), or Hub dataset user/name[@revision][:split].",
    )
    valid_data: str | None = setting(None, "Data", "Held-out pairs. Default: valid.jsonl in the --data folder.")
    valid_pairs: int = setting(
        64, "Data", "Without held-out pairs, hold out this many of --data (at most a tenth); 0 for none.", low=0
    )
    max_length: int = setting(
        2048, "Data", "Longest prompt + completion, in tokens. It costs memory only for pairs that are so long.", low=2
    )
    overlong: Overlong = setting(
        "truncate", "Data", "For pairs over --max-length: truncate (oldest turns first), drop, or error."
    )
    raw: bool = setting(False, "Data", "Use rows of strings unchanged, without the chat template.")
    chat_template_kwargs: dict[str, Any] | None = setting(
        None, "Data", "Variables for the chat template, as JSON. Those of a row take precedence."
    )
    train_on: TrainOn = setting(
        "all", "Data", "Assistant turns of a completion that are trained, if it has several: all, or the last."
    )
    prompt_column: str | None = setting(None, "Data", "Column with the prompt, if it has another name.")
    chosen_column: str | None = setting(None, "Data", "Column with the preferred completion.")
    rejected_column: str | None = setting(None, "Data", "Column with the rejected completion.")
    completion_column: str | None = setting(None, "Data", "Column with the completion, in rows with a single one.")
    label_column: str | None = setting(None, "Data", "Column with the label of that completion (true: desirable).")
    bad_rows: BadRows = setting(
        "error", "Data", "Rows that can't be read: error stops before training; skip lists them in skipped.jsonl."
    )
