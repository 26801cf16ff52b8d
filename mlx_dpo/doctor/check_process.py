"""Run checks in a process of its own, so that one which ends its process is reported like any other failure.

Metal ends a process with SIGABRT when memory runs out or a command takes too long; no exception can be caught. The
checks that were not reached then run in another process.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from importlib import import_module
from typing import Any

from mlx_dpo.doctor.check import CheckResult, MachineCheck, failed, run_checks
from mlx_dpo.doctor.mlx_probe import describe_exit
from mlx_dpo.utils.progress import NO_PROGRESS, Progress
from mlx_dpo.utils.signals import exit_on_stop_signals, stop_signals_blocked, unblock_stop_signals

CHECK_TIMEOUT = 120.0  # seconds for one check, and for the process to start
STOP_TIMEOUT = 1.0  # seconds
START_ADVICE = (
    "If a package can't be imported, install mlx-dpo in an environment of its own, apart from other packages."
)
CRASH_ADVICE = "Report it with the output of `mlx-dpo doctor --bug-report`."


def run_checks_in_process(source: str, group: str, progress: Progress = NO_PROGRESS) -> Iterator[CheckResult]:
    """Run checks in a process of its own, and yield each result as it is known.

    Args:
        source: "module:name" of a sequence of `MachineCheck`.
        group: heading of a result that belongs to none of the checks, such as that of a module that can't be imported.
        progress: a phase begins with the process, and with each check by its name.
    """
    progress.begin(f"starting the self-tests of the {group}")
    first: int | None = 0
    while first is not None:
        process = _CheckProcess(source, first)
        try:
            first = yield from process.results(group, progress)
        finally:
            process.end()


class _CheckProcess:
    """A process that runs the checks from one of them on."""

    def __init__(self, source: str, first: int) -> None:
        self.errors: deque[str] = deque(maxlen=20)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None at the end
        command = [sys.executable, "-m", __name__, source, str(first)]
        # In a session of its own: Ctrl-C arrives here alone, and `end` ends it.
        with stop_signals_blocked():
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                start_new_session=True,
            )  # fmt: skip
        self.readers = [threading.Thread(target=read, daemon=True) for read in (self._read_messages, self._read_errors)]
        for reader in self.readers:
            reader.start()

    def _read_messages(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)

    def results(self, group: str, progress: Progress) -> Generator[CheckResult, None, int | None]:
        """Yield results until the process ends; return the number of the check to resume with, None after the last."""
        running: dict[str, Any] | None = None
        began = time.perf_counter()
        while True:
            try:
                line = self.lines.get(timeout=CHECK_TIMEOUT)
            except queue.Empty:
                self.process.kill()
                problem = f"it took longer than {CHECK_TIMEOUT:.0f} s"
                break
            if line is None:
                code = self.process.wait()
                if code == 0:
                    return None
                self.readers[1].join(1.0)
                problem = describe_exit(code, "".join(self.errors))
                break
            message = json.loads(line)
            if "result" in message:
                running = None
                yield CheckResult.from_mapping(message["result"])
            else:
                running, began = message, time.perf_counter()
                progress.begin(message["name"])
        if running is None:  # before the first check or between two
            yield CheckResult(
                "self-tests", group, failed(problem, f"{START_ADVICE} {CRASH_ADVICE}"), time.perf_counter() - began
            )
            return None
        outcome = failed(problem, CRASH_ADVICE)
        yield CheckResult(running["name"], running["group"], outcome, time.perf_counter() - began)
        return running["number"] + 1

    def end(self) -> None:
        """End the process, if it still runs; it may take `STOP_TIMEOUT` to delete its temporary files."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def main(source: str, first: int) -> None:
    """Run the checks of `source` from number `first` on; a line of JSON is written as each begins and ends."""
    exit_on_stop_signals()
    unblock_stop_signals()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a check prints is not a message
    module, name = source.split(":")
    checks: Sequence[MachineCheck] = getattr(import_module(module), name)
    for number in range(first, len(checks)):
        check = checks[number]
        _send(output, {"name": check.name, "group": check.group, "number": number})
        for result in run_checks([check]):
            _send(output, {"result": result.to_mapping()})


def _send(output: Any, message: dict[str, Any]) -> None:
    output.write(json.dumps(message) + "\n")
    output.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
