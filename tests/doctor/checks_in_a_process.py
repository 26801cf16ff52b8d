"""Checks for the test of `check_process`: some pass, one ends its process, one prints, one raises."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mlx_dpo.doctor.check import CheckOutcome, MachineCheck, passed, warned


def print_and_pass() -> CheckOutcome:
    print("not a message")
    os.write(1, b"nor this\n")
    return passed("fine")


def abort() -> CheckOutcome:
    print("[METAL] Command buffer execution failed", file=sys.stderr, flush=True)
    os.abort()


def raise_error() -> CheckOutcome:
    raise ValueError("no such kernel")


def hang() -> CheckOutcome:
    Path("hanging").touch()
    time.sleep(600)
    return passed("")


CHECKS = [
    MachineCheck("first", "group", print_and_pass),
    MachineCheck("crash", "group", abort),
    MachineCheck("error", "group", raise_error),
    MachineCheck("last", "group", lambda: warned("slow", "wait")),
]
HANGING = [MachineCheck("hang", "group", hang), CHECKS[-1]]
