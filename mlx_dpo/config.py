"""`TrainConfig`: all settings of a training run, from which flags, YAML keys and help texts are made."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlx_dpo.config_fields import check_value, setting
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.formatting import did_you_mean

FineTuneType = Literal["lora", "dora", "full"]
Overlong = Literal["truncate", "drop", "error"]
TrainOn = Literal["all", "last"]
Optimizer = Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"]
BadRows = Literal["error", "skip"]
Schedule = Literal["constant", "linear", "cosine"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run; `setting(...)` gives each field its default, help text and range.

    Values are checked and converted when it is constructed.

    Raises:
        UserError: a value is of the wrong type or out of range.
    """

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

    loss: str = setting(
        "sigmoid",
        "Objective",
        "sigmoid is DPO; `mlx-dpo losses` lists all. A sum: sigmoid=0.8,bco_pair=0.2,sft=1. Your own: FILE.py:NAME.",
    )
    # None below: the default in the signature of the loss; `mlx-dpo losses` and --help print it.
    beta: float | None = setting(
        None, "Objective", "Scale of the rewards (0.01 to 0.5). With a smaller one the policy moves further.", low=1e-6
    )
    label_smoothing: float | None = setting(
        None,
        "Objective",
        "Assumed share of flipped pairs, below 0.5; with sigmoid: conservative DPO.",
        low=0,
        high=0.4999,
    )
    f_divergence: Divergence | None = setting(
        None, "Objective", "Divergence that keeps the policy close to the reference; reverse_kl is DPO's."
    )
    f_alpha_divergence_coef: float | None = setting(
        None, "Objective", "Coefficient of the alpha divergence: 1 is the reverse KL, 0 the forward KL.", low=0, high=1
    )
    rpo_alpha: float = setting(
        0.0,
        "Objective",
        "Weight of the chosen completions' negative log-likelihood, added to the loss (the same as ,sft=ALPHA).",
        low=0,
    )
    discopop_tau: float | None = setting(None, "Objective", "discopop: temperature of its mixture.", low=1e-3, high=1)
    dpop_lambda: float | None = setting(
        None, "Objective", "dpop: weight of the penalty if the chosen completion becomes less likely.", low=0
    )
    rdpo_alpha: float | None = setting(
        None, "Objective", "rdpo: reward that each token of length is assumed to earn by itself.", low=0
    )
    beta_dpo_alpha: float | None = setting(
        None, "Objective", "beta_dpo: how much beta follows the batch's margin.", low=0
    )
    beta_dpo_momentum: float | None = setting(
        None, "Objective", "beta_dpo: momentum of the moving mean margin.", low=0, high=0.9999
    )
    odpo_alpha: float | None = setting(None, "Objective", "odpo: weight of the log of the score difference.", low=0)
    tdpo_alpha: float | None = setting(
        None, "Objective", "tdpo2: weight of the difference of the two completions' KLs.", low=0
    )
    desirable_weight: float | None = setting(
        None, "Objective", "kto, bco, apo_zero_unpaired: weight of completions labelled true.", low=0
    )
    undesirable_weight: float | None = setting(
        None,
        "Objective",
        "Weight of completions labelled false. Balanced: weight times count is equal for both labels.",
        low=0,
    )
    simpo_gamma: float | None = setting(
        None, "Objective", "simpo: target reward margin (a quarter to half of beta).", low=0
    )
    cpo_alpha: float | None = setting(
        None, "Objective", "cpo: weight of the likelihood of the chosen completions.", low=0
    )
    ld_alpha: float | None = setting(
        None,
        "Objective",
        "LD-DPO: weight of tokens beyond the length of the pair's shorter completion; lower gives shorter completions.",
        low=0,
        high=1,
    )
    use_weighting: bool = setting(
        False, "Objective", "WPO: weight each pair by how likely its completions are under the policy."
    )
    reference: str = setting(
        "initial", "Objective", "initial: the starting policy. base: no adapter. none: no reference. Or a model."
    )
    reference_sync_steps: int = setting(
        0, "Objective", "TR-DPO: steps between updates of the reference towards the policy; 0 for none.", low=0
    )
    reference_mixup: float | None = setting(
        None,
        "Objective",
        "With --reference-sync-steps: weight of the policy in the updated reference. Default: 0.6.",
        low=1e-6,
        high=1,
    )

    batch_size: int = setting(
        8, "Optimization", "Pairs in one optimizer step, however they are split into micro-batches.", low=1
    )
    epochs: float = setting(1.0, "Optimization", "Passes over the pairs. Use 1 to 3; more overfit.", low=1e-6)
    iters: int | None = setting(None, "Optimization", "Optimizer steps; overrides --epochs.", low=1)
    learning_rate: float = setting(
        1e-5,
        "Optimization",
        "Peak learning rate. Lower it if the held-out margin falls; raise it if the loss stays at 0.69.",
        low=0,
    )
    lr_schedule: Schedule = setting("cosine", "Optimization", "Decay of the rate after warmup, to zero at the end.")
    warmup: float = setting(0.1, "Optimization", "Warmup steps: a number, or below 1 a share of all.", low=0)
    optimizer: Optimizer = setting("adamw", "Optimization", "Optimizer of mlx.optimizers, with bias correction.")
    weight_decay: float = setting(0.0, "Optimization", "Weight decay of the trained tensors (not with adam).", low=0)
    max_grad_norm: float = setting(1.0, "Optimization", "Clip the gradient to this norm; 0 never clips.", low=0)

    memory_limit: str | None = setting(
        None,
        "Machine",
        "Memory to use, like 12GB. Default: 70% of a GPU's; little on a CPU, on which more makes long pairs faster.",
        free=True,
    )
    micro_batch_tokens: int | None = setting(
        None,
        "Machine",
        "Tokens in a micro-batch. Default: 576 on a CPU; measured at the start for 95% of full speed on a GPU.",
        low=16,
        free=True,
    )
    grad_checkpoint: bool = setting(
        False, "Machine", "Recompute all layers in the backward pass: less memory, up to a third slower.", free=True
    )
    seed: int = setting(0, "Machine", "The same seed gives the same run, bit for bit, on the same machine.", low=0)

    adapter_path: str = setting("adapters", "Run", "Folder the run is written to; an mlx-lm adapter folder.", free=True)
    steps_per_report: int = setting(10, "Run", "Steps between lines of metrics.", low=1, free=True)
    steps_per_eval: int = setting(
        100, "Run", "Steps between evaluations of the held-out pairs; 0 for before and after training only.", low=0
    )
    save_every: int = setting(100, "Run", "Steps between checkpoints; 0 for the last one only.", low=0, free=True)
    keep_checkpoints: int = setting(3, "Run", "Number of last checkpoints to keep; 0 keeps all.", low=0, free=True)
    keep_best: bool = setting(
        False, "Run", "Also keep the checkpoint with the lowest held-out loss; best.json names it.", free=True
    )
    patience: int = setting(
        0, "Run", "Stop after this many evaluations in a row without a lower held-out loss; 0: off.", low=0, free=True
    )
    report_to: list[str] | None = setting(
        None, "Run", "Trackers to log to: wandb, tensorboard, trackio, mlflow; several as a,b.", free=True
    )

    push_to_hub: bool = setting(False, "Hub", "At the end, push the run to the Hub, as `mlx-dpo push` does.", free=True)
    hub_model_id: str | None = setting(
        None, "Hub", "Repository to push to, user/name. Default: the run folder's name, under your account.", free=True
    )
    hub_private_repo: bool = setting(True, "Hub", "Create the repository as private.", free=True)
    push_checkpoints: bool = setting(
        False,
        "Hub",
        "Push checkpoints during training, with all that --resume needs, to the branch `checkpoints`.",
        free=True,
    )

    def __post_init__(self) -> None:
        hints = _type_hints()
        for field in dataclasses.fields(self):
            value = check_value(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: Where | None = None) -> TrainConfig:
        """Make a config from plain values.

        Args:
            values: values by setting; a key may be written with hyphens.
            where: the file they come from, for error messages.

        Raises:
            UserError: a key is unknown, or a value is of the wrong type or out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        by_name = {str(key).replace("-", "_"): value for key, value in values.items()}
        for key, name in zip(values, by_name, strict=False):
            if name not in names:
                hint = did_you_mean(name, names, cutoff=0.5) or "`mlx-dpo train --help` lists the settings."
                raise UserError("unknown key", where=where, field=str(key), hint=hint)
        try:
            return cls(**by_name)
        except UserError as error:
            raise UserError(error.message, where=where, field=error.field, hint=error.hint) from None

    def to_mapping(self) -> dict[str, Any]:
        """Return all settings, in order, as plain values."""
        return dataclasses.asdict(self)

    @property
    def columns(self) -> dict[str, str]:
        """The column names that are set, by what the column holds (prompt, chosen, ...)."""
        named = {name: getattr(self, name) for name in COLUMN_SETTINGS}
        return {name.removesuffix("_column"): column for name, column in named.items() if column}

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with some settings changed. Raises `UserError` if a value is wrong."""
        return dataclasses.replace(self, **changes)


@functools.cache
def _type_hints() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig)


COLUMN_SETTINGS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name.endswith("_column"))
