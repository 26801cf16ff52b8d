"""What a Hub does wrong on purpose."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One thing that goes wrong with requests of a method whose path matches.

    Attributes:
        times: how often, after the first `skip` matching requests; all others go well.
        status: the answer, given instead of doing what is asked; None: see `cut`.
        headers, body: of that answer.
        cut: "request": the connection is closed when a part of the request has been read, and nothing is done.
            "answer": what is asked is done, but the connection is closed in the middle of the answer.
        delay: seconds that the server sleeps before it answers (with cut="answer": in the middle of the answer).
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": "on purpose"}'
    cut: str | None = None
    delay: float = 0.0


class Faults:
    """Those that are still to come."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, if any; its count goes down."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None
