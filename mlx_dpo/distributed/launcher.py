"""`train --workers`: several processes of this machine, under mlx's own launcher."""

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

EXIT_CODE_VARIABLE = "MLX_DPO_EXIT_CODE"  # names a file: mlx.launch ends with 0 whatever became of its processes


def launch_workers(workers: int) -> int:
    """Run what was typed in so many processes; returns the exit code of rank 0. Raises `UserError`."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "exit code"
        # A session of its own: signals come here, and are passed on to the ranks, but not to the launcher itself.
        process = subprocess.Popen(
            [*_launcher(), *_options(workers, told), "--", sys.executable, "-m", "mlx_dpo", *sys.argv[1:]],
            stdin=subprocess.PIPE,  # stays open: the launcher would read an end over and over
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        with handle_stop_signals(lambda *_: os.killpg(process.pid, signal.SIGINT)):
            process.wait()
        return int(told.read_text()) if told.exists() else 1


def report_exit_code(code: int) -> None:
    """Leave rank 0's exit code for `launch`."""
    if EXIT_CODE_VARIABLE in os.environ and launcher_rank() == 0:
        Path(os.environ[EXIT_CODE_VARIABLE]).write_text(str(code))


def _launcher() -> list[str]:
    beside = Path(sys.executable).with_name("mlx.launch")
    found = str(beside) if beside.exists() else shutil.which("mlx.launch")
    if found is None:
        raise UserError("there is no mlx.launch", field="workers", hint="It comes with mlx: pip install --upgrade mlx")
    return [found]


def _options(workers: int, told: Path) -> list[str]:
    port = str(find_free_ports(workers))
    options = [
        "-n",
        str(workers),
        "--starting-port",
        port,
        "--nccl-port",
        port,
        "--env",
        f"{EXIT_CODE_VARIABLE}={told}",
    ]
    if sys.stdout.isatty() and sys.stderr.isatty():  # what ranks print comes here as it is
        options += ["--env", "TTY_COMPATIBLE=1"]
    return options


def find_free_ports(count: int) -> int:
    """The first of some consecutive free ports of this machine."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return int(first)
