"""This project and its peers side by side, on one case: seconds per pair and peak memory.

    python benchmarks/peers.py [--case DIR] [--steps 6] [--only ours|mlx-lm-lora|mlx-tune] [--out FILE.json]

Makes the case where it is missing (`case.py` and its flags) and a virtual environment for the peers in .cache/peers,
with this environment's mlx and mlx-lm. Then trains, each in a process of its own and on the same pairs: this project at
4 pairs per step, mlx-lm-lora 5.10.2 at batch 4, mlx-tune 0.6.0 at batch 4 and at batch 1. Prints the numbers, and the
ratios against what this project sets out to reach; writes all to a JSON file. Exits with 1 where a process failed.

A step's seconds are divided by its pairs; the figure is the median over the steps, without the first, which warms up.
The first epoch has the reference's log-probs in it: ours come with the steps, mlx-lm-lora measures them in every step
of every epoch, mlx-tune before the first (its seconds for them are spread over the pairs). Peak memory is mlx's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from case import CaseShape, add_flags, parse_shape, read_shape
from processes import CACHE, MeasurementFailed, machine, make_case, measure, print_status, versions, write_json
from rich.console import Console
from rich.table import Table

PEERS = {"mlx-lm-lora": "5.10.2", "mlx-tune": "0.6.0"}
BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-13": "cuda13", "mlx-cuda-12": "cuda12"}  # package: extra of mlx, off the Mac
BATCH = 4
OURS, LORA, TUNE, TUNE_1 = "mlx-dpo", "mlx-lm-lora, batch 4", "mlx-tune, batch 4", "mlx-tune, batch 1"


@dataclass(frozen=True)
class PeerRun:
    """One process to measure: its name in the tables, whose it is (--only), and its pairs per step."""

    name: str
    project: str
    batch_size: int


PEER_RUNS = (
    PeerRun(OURS, "ours", BATCH),
    PeerRun(LORA, "mlx-lm-lora", BATCH),
    PeerRun(TUNE, "mlx-tune", BATCH),
    PeerRun(TUNE_1, "mlx-tune", 1),
)


@dataclass(frozen=True)
class RunFigures:
    """Measurements of a run.

    Attributes:
        first_epoch, later_epochs: seconds per pair; the first with the reference.
        peak_mb: of mlx's allocations, weights included.
    """

    first_epoch: float
    later_epochs: float
    peak_mb: float


@dataclass(frozen=True)
class TargetRatio:
    """The largest ratio of one of our figures to a peer's that meets the target."""

    text: str
    figure: str
    peer: str
    at_most: float


TARGETS = (
    TargetRatio("first epoch", "first_epoch", LORA, 1 / 3),
    TargetRatio("first epoch", "first_epoch", TUNE, 1 / 3),
    TargetRatio("first epoch", "first_epoch", TUNE_1, 2 / 3),
    TargetRatio("later epochs", "later_epochs", TUNE_1, 0.8),
    TargetRatio("peak memory", "peak_mb", LORA, 1 / 8),
    TargetRatio("peak memory", "peak_mb", TUNE, 1 / 8),
    TargetRatio("peak memory", "peak_mb", TUNE_1, 1 / 2),
)


def main() -> None:
    options = parse()
    case = prepare_case(options.case, parse_shape(options), options.steps * BATCH)
    runs = [run for run in PEER_RUNS if options.only in (None, run.project)]
    python = peers_python() if any(run.project != "ours" for run in runs) else None
    before = machine()
    raw = {run.name: attempt(run, case, options.steps, python) for run in runs}
    figures = {
        name: figures_of(output, run_named(name).batch_size) for name, output in raw.items() if "error" not in output
    }
    compared = compare(figures)
    show(figures, [name for name in raw if name not in figures], compared)
    write_json(options.out, report(case, options.steps, before, raw, figures, compared, python))
    sys.exit(0 if len(figures) == len(raw) else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", type=Path, help="folder of the case; default: one in .cache/cases, named by its shape"
    )
    parser.add_argument("--steps", type=int, default=6, help="of 4 pairs; at batch 1 four times as many (default: 6)")
    parser.add_argument("--only", choices=["ours", *PEERS], help="measure only this one")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/peers.json"), help="default: benchmarks/peers.json"
    )
    add_flags(parser)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: at least 2, for the first is left out")
    return options


def prepare_case(folder: Path | None, shape: CaseShape, pairs: int) -> Path:
    """The folder of the case, made if need be; it must have that many pairs."""
    folder = (folder or CACHE / "cases" / shape.name).resolve()
    stored = read_shape(folder)
    if stored is None and not (folder / "data" / "train.jsonl").exists():
        print_status(f"making the case in {folder}")
        make_case(folder, shape.flags())
    elif stored not in (None, shape) and shape != CaseShape():
        sys.exit(f"{folder} holds a case of another shape than these flags say; give another --case")
    with (folder / "data" / "train.jsonl").open() as f:
        held = sum(1 for _ in f)
    if held < pairs:
        sys.exit(
            f"{folder} holds {held} pairs, and the steps take {pairs}; give fewer --steps, or make it with more --pairs"
        )
    return folder


def peers_python() -> Path:
    """The Python of the peers' environment, made if need be: the peers, and mlx and mlx-lm as here."""
    folder, packages = CACHE / "peers", requirements()
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    listed = "\n".join(packages) + "\n"
    if not stamp.exists() or stamp.read_text() != listed:
        print_status(f"installing the peers in {folder}")
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        *full, bare = packages
        for command in ([sys.executable, "-m", "venv", folder], [*pip, *full], [*pip, "--no-deps", bare]):
            subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_text(listed)
    return python


def requirements() -> list[str]:
    """What the peers' environment holds; the last without its dependencies, which are for speech and vision."""
    return [
        f"mlx{backend()}=={versions('mlx')['mlx']}",
        f"mlx-lm=={versions('mlx-lm')['mlx-lm']}",
        *(f"{name}=={version}" for name, version in PEERS.items()),
    ]


def backend() -> str:
    """The extra of mlx that this environment has, in brackets; none on a Mac."""
    from importlib import metadata

    installed = {(d.metadata["Name"] or "").lower() for d in metadata.distributions()}
    return next((f"[{extra}]" for package, extra in BACKENDS.items() if package in installed), "")


def run_named(name: str) -> PeerRun:
    """One of `RUNS`."""
    return next(run for run in PEER_RUNS if run.name == name)


def attempt(run: PeerRun, case: Path, steps: int, python: Path | None) -> dict[str, Any]:
    """What a run's process printed, or {"error": why there is nothing}."""
    arguments = (case, "--batch-size", run.batch_size, "--steps", steps * BATCH // run.batch_size)
    print_status(f"{run.name}, {steps * BATCH} pairs")
    try:
        if python is None or run.project == "ours":
            return measure(sys.executable, "drive_ours.py", *arguments)
        return measure(python, "drive_peer.py", run.project, *arguments)
    except MeasurementFailed as error:
        print_status(str(error))
        return {"error": str(error)}


def figures_of(raw: dict[str, Any], batch_size: int) -> RunFigures:
    """Seconds a pair and peak memory, from what a process printed."""
    steps = median(raw["first_epoch"][1:]) / batch_size
    later = median(raw["later_epochs"]) / batch_size if raw["later_epochs"] else steps
    return RunFigures(steps + raw["reference_seconds"] / raw["pairs"], later, raw["peak_mb"])


def compare(figures: dict[str, RunFigures]) -> list[dict[str, Any]]:
    """The ratio for each target whose two runs have figures."""
    return [
        {
            "measure": target.text,
            "peer": target.peer,
            "ratio": (ratio := getattr(figures[OURS], target.figure) / getattr(figures[target.peer], target.figure)),
            "at_most": target.at_most,
            "reached": ratio <= target.at_most,
        }
        for target in TARGETS
        if OURS in figures and target.peer in figures
    ]


def show(figures: dict[str, RunFigures], failed: list[str], compared: list[dict[str, Any]]) -> None:
    """Both tables, on stdout."""
    console = Console(highlight=False)
    table = Table("", "first epoch", "later epochs", "peak MB", title="seconds per pair, and memory")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, run in figures.items():
        table.add_row(name, f"{run.first_epoch:.3f}", f"{run.later_epochs:.3f}", f"{run.peak_mb:,.0f}")
    for name in failed:
        table.add_row(name, "failed", "", "")
    console.print(table)
    if compared:
        console.print(targets_table(compared))


def targets_table(compared: list[dict[str, Any]]) -> Table:
    """The ratios of ours to each peer's, with their targets."""
    table = Table("ours / peer's", "peer", "ratio", "target", "")
    for row in compared:
        mark = "reached" if row["reached"] else "not reached"
        table.add_row(row["measure"], row["peer"], f"{row['ratio']:.3f}", f"{row['at_most']:.3f}", mark)
    return table


def report(
    case: Path,
    steps: int,
    before: dict[str, Any],
    raw: dict[str, dict[str, Any]],
    figures: dict[str, RunFigures],
    compared: list[dict[str, Any]],
    python: Path | None,
) -> dict[str, Any]:
    """All that goes into the JSON file."""
    stored = read_shape(case)
    runs = {name: {**raw[name], **({"figures": asdict(figures[name])} if name in figures else {})} for name in raw}
    return {
        "machine": before,
        "versions": {**versions("mlx-dpo", "mlx", "mlx-lm"), **(PEERS if python else {})},
        "case": {"folder": str(case), **(asdict(stored) if stored else {})},
        "steps": steps,
        "runs": runs,
        "compared": compared,
    }


if __name__ == "__main__":
    main()
