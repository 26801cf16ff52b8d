"""The training that a page has started: a process of its own, which goes on when the server ends.

All that is known of it is in its log, beside the file of preferences, where a server that is started later finds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.safe_text import without_terminal_escapes

MAX_OUTPUT_BYTES = 20_000  # of what a command has printed, from its end
_WRITE_PROCESS_ID = 'echo "$$"; exec "$@"'
_LOCK_ATTEMPTS = 20  # another server may look at the same moment whether a process has the lock
_LOCK_SECONDS = 0.02


@dataclass(frozen=True)
class RunLog:
    """What the log of a run holds.

    Attributes:
        folder: the run's folder.
        arguments: those of `mlx-dpo`.
        process_id: of the process; None for an instant after it was started.
        output: the end of what it has printed.
    """

    folder: Path
    arguments: Sequence[str]
    process_id: int | None
    output: str


class BackgroundRun:
    """The last `mlx-dpo` that was started with a log. The process has a lock on the log for as long as it lives."""

    def __init__(self, log: Path) -> None:
        """Name the log, which need not exist.

        Args:
            log: the file.
        """
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, folder: Path, arguments: Sequence[str]) -> None:
        """Start `mlx-dpo` in a session of its own.

        Args:
            folder: the folder of the run, to be remembered.
            arguments: command and options.

        Raises:
            UserError: one is running already, or the log can't be written.
        """
        header = json.dumps({"folder": str(folder.resolve()), "arguments": list(arguments)})
        with self._lock:
            try:
                with self.log.open("ab") as log:
                    self._take_lock(log.fileno())
                    log.truncate(0)
                    log.write(f"{header}\n".encode())
                    log.flush()
                    self._process = subprocess.Popen(
                        ["/bin/sh", "-c", _WRITE_PROCESS_ID, "sh", sys.executable, "-m", "mlx_dpo", *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env={**os.environ, "NO_COLOR": "1"},
                        start_new_session=True,
                    )
            except OSError as error:
                raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.log))) from None

    def _take_lock(self, descriptor: int) -> None:
        for _ in range(_LOCK_ATTEMPTS):
            with suppress(BlockingIOError):
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(_LOCK_SECONDS)
        raise UserError("a run is in progress", hint="Wait until it has ended, or stop it.")

    def is_running(self) -> bool:
        """Whether the process, or one that it has started, lives."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._process = None
            if not self.log.exists():
                return False
            with self.log.open("rb") as log:
                try:
                    fcntl.flock(log.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
            return False

    def interrupt(self) -> bool:
        """Send SIGINT to the process, if it lives: it finishes its step, saves, and ends. Returns whether it lives."""
        log = self.read()
        if log is None or log.process_id is None or not self.is_running():
            return False
        with suppress(ProcessLookupError):
            os.kill(log.process_id, signal.SIGINT)
        return True

    def read(self) -> RunLog | None:
        """What the log holds; None if nothing was started."""
        try:
            with self.log.open("rb") as log:
                header, process_id = json.loads(log.readline()), log.readline()
                start = log.tell()
                log.seek(max(start, log.seek(0, os.SEEK_END) - MAX_OUTPUT_BYTES))
                output = without_terminal_escapes(log.read().decode(errors="replace"))
            number = int(process_id) if process_id.endswith(b"\n") else None
            return RunLog(Path(header["folder"]), [str(argument) for argument in header["arguments"]], number, output)
        except (OSError, ValueError, KeyError, TypeError):
            return None
