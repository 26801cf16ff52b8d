"""Start ranks on this machine as mlx.launch does, without its busy waiting; each runs `worker.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlx_dpo.distributed.launcher import find_free_ports


def environment(folder: Path, rank: int, size: int, port: int) -> dict[str, str]:
    """The environment variables that mlx.launch sets for a rank of a ring."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + i}"] for i in range(size)]))
    ring_variables = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    # Ranks wait in busy loops, so each is to have one thread.
    return {**os.environ, **ring_variables, "OPENBLAS_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


def start_ranks(folder: Path, size: int, command: list[str]) -> list[subprocess.Popen[str]]:
    """Run a command on each of `size` ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    port = find_free_ports(size)
    return [
        subprocess.Popen(
            command,
            env=environment(folder, rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each process printed; all must exit with 0."""
    try:
        results = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(err for _, err in results)
    return [out for out, _ in results]


def run_job(folder: Path, size: int, job: str, **arguments: Any) -> list[Any]:
    """The return values of a job of `worker.py`, by rank."""
    command = [sys.executable, "-m", "tests.distributed.worker", job, str(folder), json.dumps(arguments)]
    return [json.loads(out.splitlines()[-1]) for out in outputs(start_ranks(folder, size, command))]
