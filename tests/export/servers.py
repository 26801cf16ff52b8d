"""HTTP servers of other programs, each in a process of its own on 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 120


@contextmanager
def running_server(command: Sequence[str], url: str, log: Path, health: str = "/health") -> Iterator[httpx.Client]:
    """Start a server, wait until it answers, and end it afterwards.

    Args:
        command: starts it.
        url: where it listens.
        log: receives what it prints.
        health: the path that it answers once it is ready.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            _wait(process, client, health, log)
            yield client
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], client: httpx.Client, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            if client.get(health).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no answer within {START_SECONDS} s:\n{log.read_text(errors='replace')}")


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    """The JSON that a server answers a request with."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()
