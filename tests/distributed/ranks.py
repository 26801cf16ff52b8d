"""Several ranks of this machine, as mlx.launch starts them, without its busy waiting: `worker.py` in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlx_dpo.distributed.launcher import find_free_ports


def environment(folder: Path, rank: int, size: int, port: int) -> dict[str, str]:
    """What mlx.launch puts into the environment of a rank of a ring."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + i}"] for i in range(size)]))
    of_ring = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    # Ranks wait in busy loops, so each is to have one thread.
    return {**os.environ, **of_ring, "OPENBLAS_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


def start(folder: Path, size: int, command: list[str]) -> list[subprocess.Popen[str]]:
    """A command on each of `size` ranks."""
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


def finished(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each printed, once all have ended well."""
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(err for _, err in told)
    return [out for out, _ in told]


def run(folder: Path, size: int, job: str, **arguments: Any) -> list[Any]:
    """What a job of `worker.py` returns on each rank."""
    command = [sys.executable, "-m", "tests.distributed.worker", job, str(folder), json.dumps(arguments)]
    return [json.loads(out.splitlines()[-1]) for out in finished(start(folder, size, command))]
