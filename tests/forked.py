"""Commands in processes forked from a server that has imported everything: one costs what the command itself costs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

MODULES = ["mlx_dpo.cli.app", "mlx_dpo.cli.run_listeners", "mlx_dpo.cli.unwritten_outputs", "mlx_dpo.training.run"]
MODULES += ["mlx_dpo.reporting.run_recorder", "mlx_dpo.evaluation.evaluation_run", "mlx_dpo.export.fuse.fuse_adapter"]
MODULES += ["mlx_dpo.labeling.label_run"]
MODULES += ["mlx_lm.utils", "mlx_lm.models.qwen3", "transformers.tokenization_utils_fast", "matplotlib.figure"]

if sys.platform == "linux":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
else:  # a forked process must not use Metal
    context = multiprocessing.get_context("spawn")  # type: ignore[assignment]


def start_command(
    arguments: Sequence[object], output: Path, before: Callable[[], None] = int, after: Callable[[], None] = int
) -> BaseProcess:
    """Start `mlx-dpo` with these arguments.

    Args:
        arguments: the command line.
        output: the file that stdout and stderr go to.
        before: called in the process before the command.
        after: called in the process after it, whatever it ends with.
    """
    started = context.Event()
    process = context.Process(target=_run, args=([*map(str, arguments)], output, started, before, after))
    process.start()
    started.wait(60)
    return process


def _run(
    arguments: list[str], output: Path, started: object, before: Callable[[], None], after: Callable[[], None]
) -> None:
    with output.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    before()
    sys.argv = ["mlx-dpo", *arguments]
    from mlx_dpo.cli import main

    started.set()  # type: ignore[attr-defined]
    try:
        main()
    finally:
        # The command is over: a signal that comes now would end multiprocessing's own code.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        after()
        sys.stdout.flush()
        sys.stderr.flush()
