"""The models on this machine, by whether they can be trained here, as aligned lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mlx_dpo.utils.formatting import format_bytes, plural

if TYPE_CHECKING:
    from mlx_dpo.training.model_fit import ModelFit

_GAP = "  "


def print_models(console: Console, fits: Sequence[ModelFit], places: Sequence[tuple[str, Path]]) -> None:
    """Print the models in groups: those that can be trained, those that do not fit, and the others with the reason."""
    if not fits:
        for line in _nothing_found(places):
            console.print(line, soft_wrap=True)
        return
    for title, members in _groups(fits).items():
        if members:
            console.print(Text(f"{title}:", "bold"))
            rows = [(fit.model.name, _facts(fit)) for fit in members]
            for line in _aligned(rows, console.width):
                console.print(line, soft_wrap=True)
    size = format_bytes(sum(fit.model.contents.bytes for fit in fits))
    console.print(f"{plural(len(fits), 'model')}, {size}. Train with: mlx-dpo train --model NAME --data pairs.jsonl")


def _groups(fits: Sequence[ModelFit]) -> dict[str, list[ModelFit]]:
    complete = [fit for fit in fits if fit.trainable and not fit.model.contents.missing]
    return {
        "Can be trained here, with pairs of up to": [fit for fit in complete if fit.fits is not False],
        "Too large for this machine": [fit for fit in complete if fit.fits is False],
        "Partly downloaded": [fit for fit in fits if fit.trainable and fit.model.contents.missing],
        "Can't be trained": [fit for fit in fits if not fit.trainable],
    }


def places_searched(folders: Sequence[Path] | None) -> list[tuple[str, Path]]:
    """Where models are looked for: the kind of place, and its folder."""
    from mlx_dpo.discovery.hub_cache import hub_cache_folder
    from mlx_dpo.discovery.lm_studio import lm_studio_folders

    if folders:
        return [("folder", folder) for folder in folders]
    return [("Hub cache", hub_cache_folder()), *(("LM Studio", folder) for folder in lm_studio_folders())]


def _facts(fit: ModelFit) -> tuple[str, str, str, str]:
    contents = fit.model.contents
    bits = f"{contents.bits}-bit" if contents.bits else ""
    return contents.model_type or "", bits, format_bytes(contents.bytes), _verdict(fit)


def _verdict(fit: ModelFit) -> str:
    missing = fit.model.contents.missing
    if fit.trainable and missing:
        return f"{missing} missing" + (f"; then {fit.longest_pair:,} tokens" if fit.longest_pair else "")
    if fit.reason:
        return fit.reason
    if fit.peak is None:
        return "memory not estimated"
    if fit.fits:
        return f"{fit.longest_pair:,} tokens" if fit.longest_pair else "short pairs, perhaps"
    return f"takes {format_bytes(fit.peak)}"


def _aligned(rows: Sequence[tuple[str, tuple[str, str, str, str]]], width: int) -> Iterator[str]:
    """A line for each model; where a name leaves too little room, its facts are in the next line."""
    columns = [max(len(facts[i]) for _, facts in rows) for i in range(3)]
    facts_width = sum(columns) + 3 * len(_GAP) + max(len(facts[3]) for _, facts in rows)
    longest_name = max(len(name) for name, _ in rows)
    is_narrow = 2 * len(_GAP) + longest_name + facts_width > width
    for name, (model_type, bits, size, verdict) in rows:
        cells = (f"{model_type:<{columns[0]}}", f"{bits:>{columns[1]}}", f"{size:>{columns[2]}}", verdict)
        facts = _GAP.join(cell for cell in cells if cell.strip() or not is_narrow).rstrip()
        yield f"{_GAP}{name}\n{3 * _GAP}{facts}" if is_narrow else f"{_GAP}{name:<{longest_name}}{_GAP}{facts}"


def _nothing_found(places: Sequence[tuple[str, Path]]) -> Iterator[str]:
    yield "No models were found. Looked in:"
    for place, folder in places:
        yield f"  {folder} ({place}{'' if folder.is_dir() else ', not there'})"
    yield "Download one, such as: hf download mlx-community/Qwen3-4B-4bit"
    yield "Or name folders with models: mlx-dpo models FOLDER. `mlx-dpo demo` needs no model."
