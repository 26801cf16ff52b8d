"""`train --workers`: several ranks on this machine, started by mlx's own launcher."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from mlx_dpo.distributed.rank_environment import launcher_rank
from mlx_dpo.errors import UserError
from mlx_dpo.utils.signals import handle_stop_signals

EXIT_CODE_VARIABLE = "MLX_DPO_EXIT_CODE"  # names a file: mlx.launch itself returns 0 whatever its processes returned


def launch_workers(workers: int) -> int:
    """Run this process's command line on several ranks.

    Args:
        workers: number of ranks.

    Returns:
        The exit code of rank 0.

    Raises:
        UserError: mlx.launch is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        exit_code = Path(folder) / "exit code"
        # In a session of its own: signals come to this process, which forwards them to the ranks but not the launcher.
        process = subprocess.Popen(
            [_launcher(), *_options(workers, exit_code), "--", sys.executable, "-m", "mlx_dpo", *sys.argv[1:]],
            stdin=subprocess.PIPE,  # stays open, as the launcher polls an stdin that has ended without pause
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        with handle_stop_signals(lambda *_: os.killpg(process.pid, signal.SIGINT)):
            process.wait()
        return int(exit_code.read_text()) if exit_code.exists() else 1


def report_exit_code(code: int) -> None:
    """Store rank 0's exit code for `launch_workers`."""
    if EXIT_CODE_VARIABLE in os.environ and launcher_rank() == 0:
        Path(os.environ[EXIT_CODE_VARIABLE]).write_text(str(code))


def _launcher() -> str:
    beside = Path(sys.executable).with_name("mlx.launch")
    path = str(beside) if beside.exists() else shutil.which("mlx.launch")
    if path is None:
        hint = "It comes with mlx: pip install --upgrade mlx"
        raise UserError("mlx.launch is not installed", field="workers", hint=hint)
    return path


def _options(workers: int, exit_code: Path) -> list[str]:
    port, exit_code_setting = str(find_free_ports(workers)), f"{EXIT_CODE_VARIABLE}={exit_code}"
    options = ["-n", str(workers), "--starting-port", port, "--nccl-port", port, "--env", exit_code_setting]
    if sys.stdout.isatty() and sys.stderr.isatty():  # the ranks' output is passed on unchanged
        options += ["--env", "TTY_COMPATIBLE=1"]
    return options


def find_free_ports(count: int) -> int:
    """The first of `count` consecutive free ports on this machine."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return int(first)
