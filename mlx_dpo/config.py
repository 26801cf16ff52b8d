"""TrainConfig: every knob of a training run, once. Command line, YAML files and library all read it from here."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlx_dpo.errors import UserError, Where

FineTuneType = Literal["lora", "dora", "full"]
Overlong = Literal["truncate", "drop", "error"]
Optimizer = Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"]
BadRows = Literal["error", "skip"]
Schedule = Literal["constant", "linear", "cosine"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def knob(
    default: Any, group: str, help: str, *, low: float | None = None, high: float | None = None, free: bool = False
) -> Any:
    """A field of `TrainConfig`.

    Args:
        group: what it stands under in --help.
        help: what it does to the result.
        low, high: its allowed range.
        free: a run that goes on may have it changed, for its numbers do not follow from it.
    """
    return field(default=default, metadata={"group": group, "help": help, "low": low, "high": high, "free": free})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every knob of a run. `TrainConfig.from_mapping` checks names, types and ranges and raises `UserError`."""

    model: str = knob(
        "",
        "Model",
        "Folder of an mlx-lm model, or its Hub id, user/name[@revision]. Any precision: 4-bit, mxfp4, bf16.",
    )
    fine_tune_type: FineTuneType = knob(
        "lora", "Model", "lora: small and quick. dora: closer to full, about a third slower. full: all weights."
    )
    num_layers: int = knob(-1, "Model", "Train the last N layers; -1 for all. Fewer: faster, less changes.", low=-1)
    rank: int = knob(8, "Model", "Rank of the adapters. Preferences need little: 8 to 32.", low=1)
    scale: float = knob(20.0, "Model", "Factor on the adapters (mlx-lm's; alpha / rank elsewhere).", low=0)
    dropout: float = knob(0.0, "Model", "Dropout inside the adapters while training.", low=0, high=0.999)
    lora_keys: list[str] | None = knob(
        None, "Model", "Layers to adapt, as named inside a block (self_attn.q_proj,...). Default: all linear ones."
    )
    fuse_bits: int | None = knob(
        None, "Model", "Train what can be fused at the base's own bits (give them: 4) without a loss.", low=2, high=8
    )
    tensor_parallel: bool = knob(
        False,
        "Model",
        "Of a model too large for one machine each rank holds its share; LoRA on top. Else pairs are split.",
        free=True,
    )
    init_adapter: str | None = knob(None, "Model", "Start from this adapter folder; the reference is then that start.")

    data: str = knob(
        "",
        "Data",
        "Preference pairs: a file, a folder with train.jsonl, -, or of the Hub: user/name[@revision][:split].",
    )
    valid_data: str | None = knob(None, "Data", "Held-out pairs. Default: valid.jsonl in the --data folder.")
    valid_pairs: int = knob(
        64, "Data", "Without held-out pairs: set aside this many of --data (at most a tenth); 0 for none.", low=0
    )
    max_length: int = knob(2048, "Data", "Longest prompt + completion in tokens; costs memory only when used.", low=2)
    overlong: Overlong = knob(
        "truncate", "Data", "Pairs over --max-length: truncate (oldest turns first), drop, error."
    )
    raw: bool = knob(False, "Data", "Take string rows as they are, without the chat template.")
    prompt_column: str | None = knob(None, "Data", "Column of the rows that is their prompt, where none is found.")
    chosen_column: str | None = knob(None, "Data", "Column that is the answer to prefer.")
    rejected_column: str | None = knob(None, "Data", "Column that is the answer not to prefer.")
    completion_column: str | None = knob(None, "Data", "Column that is the answer, of rows with one answer.")
    label_column: str | None = knob(None, "Data", "Column that says whether that answer is as it should be.")
    bad_rows: BadRows = knob(
        "error", "Data", "Rows that can't be read: error stops before training; skip lists them in skipped.jsonl."
    )

    loss: str = knob(
        "sigmoid",
        "Objective",
        "sigmoid is DPO; `mlx-dpo losses` lists all. A sum: sigmoid=0.8,bco_pair=0.2,sft=1. Your own: FILE.py:NAME.",
    )
    # None below: the loss's own default, which stands in its function's signature; `mlx-dpo losses` prints it.
    beta: float | None = knob(
        None,
        "Objective",
        "How closely to stay with the reference: lower moves further (0.01 to 0.5). Default: 0.1 (simpo: 2).",
        low=1e-6,
    )
    label_smoothing: float | None = knob(
        None,
        "Objective",
        "Assumed share of flipped pairs, below 0.5; with sigmoid: conservative DPO. Default: 0 (exo_pair: 0.001).",
        low=0,
        high=0.4999,
    )
    f_divergence: Divergence | None = knob(
        None, "Objective", "What keeps the policy close to the reference. Default: reverse_kl, which is DPO's."
    )
    f_alpha_divergence_coef: float | None = knob(
        None, "Objective", "Of alpha: 1 is the reverse KL, 0 the forward KL. Default: 0.5.", low=0, high=1
    )
    rpo_alpha: float = knob(
        0.0, "Objective", "Add this much of the chosen answers' negative log-likelihood: the same as ,sft=ALPHA.", low=0
    )
    discopop_tau: float | None = knob(
        None, "Objective", "discopop: temperature of its mixture. Default: 0.05.", low=1e-3, high=1
    )
    dpop_lambda: float | None = knob(
        None, "Objective", "dpop: weight of the penalty on chosen answers grown less likely. Default: 50.", low=0
    )
    rdpo_alpha: float | None = knob(
        None, "Objective", "rdpo: reward a token of length is assumed to earn by itself. Default: 0.01.", low=0
    )
    beta_dpo_alpha: float | None = knob(
        None, "Objective", "beta_dpo: how much beta follows the batch's margin. Default: 0.6.", low=0
    )
    beta_dpo_momentum: float | None = knob(
        None,
        "Objective",
        "beta_dpo: share of the moving mean margin kept in each step. Default: 0.9.",
        low=0,
        high=0.9999,
    )
    odpo_alpha: float | None = knob(
        None, "Objective", "odpo: weight of the log of how much better the chosen is scored. Default: 1.", low=0
    )
    tdpo_alpha: float | None = knob(
        None, "Objective", "tdpo2: weight of the difference of the two answers' KLs. Default: 0.5.", low=0
    )
    desirable_weight: float | None = knob(
        None, "Objective", "kto, bco, apo_zero_unpaired: weight of completions labelled true. Default: 1.", low=0
    )
    undesirable_weight: float | None = knob(
        None,
        "Objective",
        "The same of those labelled false. Weight times number alike for both is balanced. Default: 1.",
        low=0,
    )
    simpo_gamma: float | None = knob(
        None, "Objective", "simpo: margin to reach, in rewards (a quarter to half of beta). Default: 0.5.", low=0
    )
    cpo_alpha: float | None = knob(
        None, "Objective", "cpo: weight of the likelihood of the chosen answers. Default: 1.", low=0
    )
    ld_alpha: float | None = knob(
        None,
        "Objective",
        "Tokens beyond the length of a pair's shorter answer count this much (LD-DPO): less, for shorter answers.",
        low=0,
        high=1,
    )
    use_weighting: bool = knob(
        False, "Objective", "Weigh pairs by how likely the policy finds its answers (WPO), as if it had given them."
    )
    reference: str = knob(
        "initial", "Objective", "initial: the starting policy. base: without adapter. none. Or a model folder."
    )
    reference_sync_steps: int = knob(
        0, "Objective", "Move the reference to the policy every so many steps (TR-DPO); 0: it stays.", low=0
    )
    reference_mixup: float | None = knob(
        None,
        "Objective",
        "With --reference-sync-steps: share of the policy in the new reference. Default: 0.6.",
        low=1e-6,
        high=1,
    )

    batch_size: int = knob(8, "Optimization", "Pairs in one optimizer step, however they are cut for memory.", low=1)
    epochs: float = knob(1.0, "Optimization", "Passes over the pairs (1 to 3; more overfits).", low=1e-6)
    iters: int | None = knob(None, "Optimization", "Optimizer steps; overrides --epochs.", low=1)
    learning_rate: float = knob(
        1e-5, "Optimization", "Peak rate. Held-out margin falls: lower it. Loss stays at 0.69: raise it.", low=0
    )
    lr_schedule: Schedule = knob("cosine", "Optimization", "How the rate falls after the warmup, to zero at the end.")
    warmup: float = knob(0.1, "Optimization", "Rising steps at the start: a share of all (below 1) or a number.", low=0)
    optimizer: Optimizer = knob("adamw", "Optimization", "From mlx.optimizers, with bias correction on.")
    weight_decay: float = knob(0.0, "Optimization", "Decay of the trained tensors towards zero (not adam).", low=0)
    max_grad_norm: float = knob(1.0, "Optimization", "Clip the gradient to this norm; 0 never clips.", low=0)

    memory_limit: str | None = knob(
        None,
        "Machine",
        "Memory to use, like 12GB. Default: little; more makes long pairs up to a third faster.",
        free=True,
    )
    grad_checkpoint: bool = knob(
        False, "Machine", "Recompute every layer in the backward pass: least memory, up to a third slower.", free=True
    )
    seed: int = knob(0, "Machine", "The same seed gives the same run, bit for bit, on the same machine.", low=0)

    adapter_path: str = knob("adapters", "Run", "Folder the run is written to; an mlx-lm adapter folder.", free=True)
    steps_per_report: int = knob(10, "Run", "Steps between lines of metrics.", low=1, free=True)
    steps_per_eval: int = knob(
        100, "Run", "Steps between evaluations of the held-out pairs; 0: only first and last.", low=0
    )
    save_every: int = knob(100, "Run", "Steps between checkpoints; 0: only the last.", low=0, free=True)
    keep_checkpoints: int = knob(3, "Run", "Checkpoints to keep, the last ones; 0 keeps all.", low=0, free=True)
    keep_best: bool = knob(
        False, "Run", "Keep the checkpoint with the lowest held-out loss, too; best.json names it.", free=True
    )
    patience: int = knob(
        0,
        "Run",
        "Stop when so many evaluations in a row have not lowered the held-out loss; 0: never.",
        low=0,
        free=True,
    )
    report_to: list[str] | None = knob(
        None, "Run", "Trackers to log to as well: wandb, tensorboard, trackio, mlflow; several as a,b.", free=True
    )

    push_to_hub: bool = knob(False, "Hub", "At the end, push the run to the Hub, as `mlx-dpo push` does.", free=True)
    hub_model_id: str | None = knob(
        None, "Hub", "Repository to push to, user/name. Default: the run folder's name, under your own.", free=True
    )
    hub_private_repo: bool = knob(True, "Hub", "A repository made for it is private.", free=True)
    push_checkpoints: bool = knob(
        False,
        "Hub",
        "Push checkpoints on the way, with all that --resume needs, to the branch `checkpoints`.",
        free=True,
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: Where | None = None) -> TrainConfig:
        """A checked config from plain values. Raises `UserError` naming the nearest knob for an unknown key."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        types_ = typing.get_type_hints(cls)
        checked = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise UserError("unknown key", where=where, field=str(key), hint=_nearest(name, list(known)))
            checked[name] = _checked(known[name], types_[name], value, where)
        return cls(**checked)

    def to_mapping(self) -> dict[str, Any]:
        """All knobs, in order, as plain values."""
        return dataclasses.asdict(self)

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the rows that were named, by what they hold."""
        named = {name: getattr(self, name) for name in COLUMN_KNOBS}
        return {name.removesuffix("_column"): column for name, column in named.items() if column}

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some knobs changed, checked again."""
        return self.from_mapping({**self.to_mapping(), **changes})


COLUMN_KNOBS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name.endswith("_column"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML config file. Raises `UserError` where it is not one."""
    where = Where(str(path))
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such config file", where=where) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file can't be read: {error}", where=where) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or "it can't be parsed"
        raise UserError(f"not valid YAML: {problem}", where=Where(str(path), line)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError("a config file holds `key: value` lines", where=where)
    return values


def config_from(file: str | Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The config of a YAML file (if any) with the given flags on top."""
    from_file = {} if file is None else read_yaml(file)
    where = None if file is None else Where(str(file))
    TrainConfig.from_mapping(from_file, where)  # complaints about the file name the file
    return TrainConfig.from_mapping({**{str(k).replace("-", "_"): v for k, v in from_file.items()}, **flags})


def dump_yaml(config: TrainConfig) -> str:
    """The config as YAML that `read_yaml` takes back."""
    return yaml.safe_dump(config.to_mapping(), sort_keys=False, allow_unicode=True)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else "`mlx-dpo train --help` lists the knobs."


def unwrap_optional(hint: Any) -> tuple[Any, bool]:
    """The type inside `X | None`, and whether None was allowed."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return inner[0], True
    return hint, False


def _checked(f: dataclasses.Field[Any], hint: Any, value: Any, where: Where | None) -> Any:
    kind, optional = unwrap_optional(hint)
    if value is None and optional:
        return None
    value = _converted(f.name, kind, value, where)
    low, high = f.metadata["low"], f.metadata["high"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        in_range = (low is None or value >= low) and (high is None or value <= high)
        if not in_range or value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{value} is out of range: {_range(low, high)}", where=where, field=f.name)
    return value


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "it must be finite"
    return f"at least {low}" if high is None else f"from {low} to {high}"


def _converted(name: str, kind: Any, value: Any, where: Where | None) -> Any:
    def wrong(expected: str) -> UserError:
        return UserError(f"expected {expected}, not {value!r}", where=where, field=name)

    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else None
            raise UserError(f"{value!r} is not one of {', '.join(choices)}", where=where, field=name, hint=hint)
        return value
    if typing.get_origin(kind) is list:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise wrong("a list of names")
        return [part.strip() for item in items for part in item.split(",") if part.strip()]
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if kind is float:
        try:  # YAML reads 1e-5 as a string
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong("a number") from None
    if not isinstance(value, str):
        raise wrong("a text")
    return value
