"""What commands that train have in common: who listens, and what is written at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_dpo.cli.output import notes
from mlx_dpo.export.card import write_card
from mlx_dpo.reporting.diagnosis import Watch
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.numbers import RunNumbers
from mlx_dpo.reporting.page import LiveReport, write_report
from mlx_dpo.reporting.pictures import FOLDER, write_pictures
from mlx_dpo.reporting.progress import TerminalProgress, tell_finding
from mlx_dpo.reporting.recorder import Recorder
from mlx_dpo.reporting.result import summary
from mlx_dpo.training.listener import Listener, Listeners, TrainResult


def listeners(*, samples: int, live: bool = False, quiet: bool = False) -> Listener:
    """Those that write a run's numbers down, then those that read them."""
    recorder = Recorder(samples)
    watch = Watch(lambda finding: tell_finding(notes, finding))
    seen: list[Listener] = [] if quiet else [TerminalProgress(notes, recorder)]
    return Listeners(MetricsLog(), recorder, watch, *([LiveReport()] if live else []), *seen)


def finish(result: TrainResult, plots: Sequence[str] = ()) -> dict[str, Any]:
    """Write the card, the page and the pictures; returns what there is to say of the run beside its means."""
    write_card(result)
    write_report(result.run)
    run = RunNumbers.read(result.run)
    write_pictures([run], result.run / FOLDER, plots)
    return {name: value for name, value in summary(run).items() if name not in ("run", "step", "steps")}
