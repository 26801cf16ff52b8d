"""README.md of what was trained: the Hub's metadata, what was trained and how, what it came to, how to run it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.export.card.base_model import BaseModelInfo, describe_base_model
from mlx_dpo.export.card.curves import CURVES_FILE as CURVES
from mlx_dpo.export.card.curves import draw_curves
from mlx_dpo.export.card.training_record import read_training_record, settings_on_hub
from mlx_dpo.export.card.usage_section import usage_section
from mlx_dpo.export.push.upload_files import (
    FolderKind,
    detect_folder_kind,
    read_mapping_file,
    strip_local_path,
    strip_local_paths,
)
from mlx_dpo.utils.hub_client import HubRepoRef, redact_secrets

CARD_FILE = "README.md"
GENERATED_MARKER = (
    "<!-- Written by mlx-dpo, and written anew by the next push; take this line out to keep the card as it is. -->"
)
METRIC_LABELS = {
    "logps/accuracies": "chosen likelier than rejected",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of the chosen answer",
    "rewards/rejected": "reward of the rejected answer",
    "logps/chosen": "log-probability of the chosen answer",
    "logps/rejected": "log-probability of the rejected answer",
    "loss": "loss",
}
_INDEXED = ("rewards/accuracies", "rewards/margins", "logps/accuracies", "loss")
_RELATION = {"adapter": "adapter", "peft": "adapter", "model": "finetune"}


@dataclass(frozen=True)
class CardInputs:
    """What a card is made of; what is not known is empty, and goes unsaid.

    Attributes:
        name: of the repository or folder.
        repo_id: where it is, or will be.
        record: see `mlx_dpo.export.card.training_record`; of a fused model, `fuse` holds what was measured.
        curves: whether curves.png lies beside the card.
        quantized: whether a model's weights are, in MLX's way.
    """

    kind: FolderKind
    name: str
    repo_id: str | None
    base: BaseModelInfo
    record: Mapping[str, Any]
    has_curves: bool = False
    is_quantized: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The run's config.yaml, without where things lie on this machine."""
        return strip_local_paths(dict(self.record.get("config") or {}))

    @property
    def hub_dataset(self) -> HubRepoRef | None:
        """The data set of the Hub that was trained on, if it was one."""
        data = str((self.record.get("config") or {}).get("data") or "")
        return HubRepoRef.parse(data) if "data" in _on_hub(self.record) else None


def _on_hub(record: Mapping[str, Any]) -> list[str]:
    known = record.get("on_hub")
    return settings_on_hub(record.get("config") or {}) if known is None else known


def collect_card_inputs(folder: str | Path, repo_id: str | None = None, *, fetch_base_card: bool = False) -> CardInputs:
    """What is known of a finished run's folder, or of a fused model's. Raises `UserError` where it is neither."""
    root = Path(folder)
    kind, record = detect_folder_kind(root), read_training_record(root)
    model = str((record.get("config") or {}).get("model") or "")
    name = repo_id.split("/")[-1] if repo_id else root.resolve().name
    quantized = kind == "model" and "quantization" in read_mapping_file(root / "config.json")
    base = describe_base_model(model, may_be_hub_id="model" in _on_hub(record), fetch_card=fetch_base_card)
    return CardInputs(kind, name, repo_id, base, record, is_quantized=quantized)


def render_card_files(
    folder: str | Path, repo_id: str | None = None, *, fetch_base_card: bool = False
) -> dict[str, bytes]:
    """The card and the curves of a folder by file name; nothing where its README.md is somebody's own."""
    if not may_overwrite_card(folder):
        return {}
    known = collect_card_inputs(folder, repo_id, fetch_base_card=fetch_base_card)
    curves = draw_curves(known.record.get("lines") or [])
    known = replace(known, has_curves=curves is not None)
    made = {CARD_FILE: render_card(known).encode()}
    return made if curves is None else {**made, CURVES: curves}


def may_overwrite_card(folder: str | Path) -> bool:
    """Whether the card may be written: there is none, or it is one of ours, or the bare metadata that mlx-lm leaves."""
    try:
        text = (Path(folder) / CARD_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    body = text.split("\n---", 1)[-1].strip() if text.startswith("---") else text
    return GENERATED_MARKER in text or not body


def write_card(folder: str | Path) -> Path:
    """Write README.md, and curves.png where matplotlib is there, into a finished run's or a fused model's folder."""
    for name, content in render_card_files(folder).items():
        (Path(folder) / name).write_bytes(content)
    return Path(folder) / CARD_FILE


def render_card(known: CardInputs) -> str:
    """The card as Markdown with the YAML head that the Hub reads."""
    head = yaml.safe_dump(card_metadata(known), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {known.name}",
        *_what(known),
        *_results(known),
        *_fused(known.record.get("fuse") or {}),
        *_how(known),
        *usage_section(known),
        *_limits(known),
        GENERATED_MARKER,
    ]
    return redact_secrets(f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n")


def card_metadata(known: CardInputs) -> dict[str, Any]:
    """The head: what the Hub lists and filters by."""
    head: dict[str, Any] = dict(known.base.inherited_metadata)
    if known.base.repo_id:
        head |= {"base_model": known.base.repo_id, "base_model_relation": _RELATION[known.kind]}
    head["library_name"] = "peft" if known.kind == "peft" else "mlx"
    head["pipeline_tag"] = "text-generation"
    head["tags"] = list(dict.fromkeys(["mlx", "mlx-dpo", "preference-tuning", *_tags(known)]))
    if known.hub_dataset:
        head["datasets"] = [known.hub_dataset.repo_id]
    return head | _model_index(known)


def _tags(known: CardInputs) -> Iterator[str]:
    losses = str(known.config.get("loss") or "").split(",")
    named = (loss.partition("=")[0] for loss in losses if loss and ":" not in loss)
    yield from ("dpo" if loss == "sigmoid" else loss for loss in named)
    if known.kind != "model":
        yield str(known.config.get("fine_tune_type") or "lora")


def _model_index(known: CardInputs) -> dict[str, Any]:
    after = known.record.get("after") or {}
    values = {name: after[name] for name in _INDEXED if math.isfinite(after.get(name, math.nan))}
    if not values:
        return {}
    where = {"type": known.hub_dataset.repo_id if known.hub_dataset else "preference-pairs", "name": _data(known)}
    if known.hub_dataset and known.hub_dataset.part:
        where["split"] = known.hub_dataset.part.rpartition("/")[2]
    measured = [
        {"type": name, "name": f"{METRIC_LABELS[name]}, held out", "value": round(v, 4)} for name, v in values.items()
    ]
    result = {"task": {"type": "text-generation"}, "dataset": where, "metrics": measured}
    return {"model-index": [{"name": known.name, "results": [result]}]}


def _data(known: CardInputs) -> str:
    return str(known.config.get("data") or "rows in memory")


def _what(known: CardInputs) -> Iterator[str]:
    config, base = known.config, known.base
    link = f"[{base.repo_id}](https://huggingface.co/{base.repo_id})" if base.repo_id else _code(base.display_name)
    at = f" at revision {_code(base.revision)}" if base.revision else ""
    kind = str(config.get("fine_tune_type") or "lora")
    whats = {"lora": "A LoRA adapter of", "dora": "A DoRA adapter of", "full": "All weights of the last layers of"}
    what = "A model: an adapter folded into" if known.kind == "model" else whats.get(kind, "An adapter of")
    if not config:
        yield f"{what} {link}{at}, made with mlx-dpo. How it was trained is not recorded beside it."
        return
    pairs = known.record.get("pairs") or {}
    count = f"{pairs['train']:,} rows of " if pairs.get("train") else ""
    data = _code(_data(known))
    if known.hub_dataset:
        data = f"[{_data(known)}](https://huggingface.co/datasets/{known.hub_dataset.repo_id})"
    yield (
        f"{what} {link}{at}, trained on preferences (the answer to want, the answer not to want) from {count}"
        f"{data}. Objective: {_code(config.get('loss'))}, beta {config.get('beta')}, against "
        f"{_reference(config)}."
    )


def _reference(config: Mapping[str, Any]) -> str:
    reference = str(config.get("reference") or "initial")
    named = {"initial": "the policy as it started", "base": "the model without adapters", "none": "no reference"}
    return named.get(reference, _code(reference))


def _results(known: CardInputs) -> Iterator[str]:
    before, after = (known.record.get(name) or {} for name in ("before", "after"))
    yield "## What it came to"
    if not after:
        yield "No pairs were held out, so what changed was not measured."
        return
    count = (known.record.get("pairs") or {}).get("held_out")
    lines = [f"| on {f'{count:,} ' if count else ''}held-out pairs | before | after |", "| --- | --- | --- |"]
    for metric, name in METRIC_LABELS.items():
        if metric in after:
            lines.append(f"| {name} | {_number(before.get(metric))} | {_number(after[metric])} |")
    yield "\n".join(lines)
    yield "Rewards are beta times the log-ratio to the reference, summed over an answer's tokens."
    if known.has_curves:
        yield f"![Loss and rewards by step]({CURVES})"


_FUSED = {
    "model": ("model", "{}"),
    "bits": ("bits", "{}"),
    "bytes": ("bytes", "{:,}"),
    "margin": ("margin", "{:.3f}"),
    "kept": ("kept", "{:.1%}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "kl": ("KL to the adapter, a token", "{:.2g}"),
}


def _fused(fuse: Mapping[str, Any]) -> Iterator[str]:
    """What folding the adapter in was measured to keep."""
    if fuse.get("note"):
        yield _line(fuse["note"])
    rows = [row for row in fuse.get("models") or [] if isinstance(row, dict)]
    if not rows:
        return
    yield "Folded in, it was measured beside base and adapter; `kept` is the share of the margin that the adapter adds:"
    names = [name for name in _FUSED if any(row.get(name) is not None for row in rows)]
    lines = [f"| {' | '.join(_FUSED[name][0] for name in names)} |", f"|{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(_told(name, row.get(name)) for name in names)} |" for row in rows]
    yield "\n".join(lines)
    if blocks := fuse.get("blocks"):
        bits = [f"| {_cell(block)} | {_cell(of_layers)} |" for block, of_layers in blocks.items()]
        yield "\n".join(["| block | bits of its adapted layers |", "| --- | --- |", *bits])


def _told(name: str, value: Any) -> str:
    return "" if value is None else _cell(_FUSED[name][1].format(value))


def _cell(value: Any) -> str:
    return _line(value).replace("|", " ")


def _line(text: object) -> str:
    """A text on one line."""
    return " ".join(str(text).split())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _how(known: CardInputs) -> Iterator[str]:
    record = known.record
    if not known.config:
        return
    yield "## How it was trained"
    if command := record.get("command"):
        yield _fence(shlex.join(strip_local_path(word) for word in command), "")
    facts = [f"seed {known.config.get('seed')}"]
    if record.get("steps"):
        facts.append(f"{record['steps']:,} steps of {known.config.get('batch_size')} rows")
    if record.get("seconds"):
        rest = f" (since step {record['first_step']:,})" if record.get("first_step") else ""
        together = f", {record['ranks']} processes together" if record.get("ranks", 1) > 1 else ""
        facts.append(f"{record['seconds'] / 60:.1f} minutes{rest} on {record.get('machine')}{together}")
    if record.get("versions"):
        facts.append(", ".join(f"{name} {number}" for name, number in record["versions"].items()))
    yield "; ".join(facts)[:1].upper() + "; ".join(facts)[1:] + "."
    yield "Every knob that is set; `mlx-dpo train -c config.yaml` takes them:"
    knobs = {name: value for name, value in known.config.items() if value is not None}
    yield _fence(yaml.safe_dump(knobs, sort_keys=False, allow_unicode=True), "yaml")


def _code(text: object) -> str:
    """Code within a line, which its text can't leave."""
    line = _line(text)
    return f"`` {line} ``".replace("``", "`" * (line.count("`") + 2)) if "`" in line else f"`{line}`"


def _fence(text: str, language: str) -> str:
    """A code block that its text can't end."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def _limits(known: CardInputs) -> Iterator[str]:
    yield "## Limits"
    limits = [f"What holds for {known.base.display_name} holds here: its license, its languages, its faults."]
    before, after = (known.record.get(name) or {} for name in ("before", "after"))
    if after:
        limits.append(
            "The numbers are of pairs like those it was trained on. They say how well it learnt that preference, not "
            "how good its answers are; no other benchmark was run."
        )
    fell = after.get("logps/chosen", math.nan) - before.get("logps/chosen", math.nan)
    if fell < -1:
        limits.append(
            f"The chosen answers themselves became less likely (their log-probability fell by {-fell:.1f} on average), "
            "as preference training can do; look at what it answers."
        )
    limits.append("It was trained to prefer, not to refuse or to know: what the pairs don't show was not taught.")
    if known.kind != "model" and known.base.repo_id is None:
        limits.append("It belongs to a model that is not named on the Hub; with another it does nothing sensible.")
    yield "\n".join(f"- {limit}" for limit in limits)
