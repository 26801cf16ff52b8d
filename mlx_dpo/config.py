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
from mlx_dpo.settings.data_settings import DataSettings
from mlx_dpo.settings.objective_settings import ObjectiveSettings
from mlx_dpo.settings.on_policy_settings import OnPolicySettings
from mlx_dpo.settings.policy_gradient_settings import PolicyGradientSettings
from mlx_dpo.utils.formatting import did_you_mean

Optimizer = Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(PolicyGradientSettings, OnPolicySettings, ObjectiveSettings, DataSettings):
    # Fields are in the reverse order of the bases.
    """All settings of a run; `setting(...)` gives each field its default, help text and range.

    Values are checked and converted when it is constructed.

    Raises:
        UserError: a value is of the wrong type or out of range.
    """

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
