"""Which tests run in the same worker of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Their tests start processes that would take the cores from each other, and be the last to end.
SEVERAL_PROCESSES = ("tests/distributed/", "tests/supervision/", "tests/training/test_process.py")


class ProcessesInOneWorker(LoadFileScheduling):  # type: ignore[misc]
    """All tests of a file in one worker, and those of several processes in one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "several processes" if file.startswith(SEVERAL_PROCESSES) else file
