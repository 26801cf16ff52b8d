"""What the launcher's environment variables say about this process, before (and without) connecting to other ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

# Set by mlx.launch (for ring, jaccl and NCCL), by Open MPI and by other implementations of mpirun.
RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
HOSTFILE_VARIABLE = "MLX_HOSTFILE"  # of a ring over TCP: names a file with the addresses of every rank


def launcher_rank() -> int | None:
    """The rank of this process; None if no launcher started it, or started it alone."""
    rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "")
    return int(rank) if rank.isdigit() and not _is_single_rank_ring() else None


def is_main_process() -> bool:
    """Whether this process prints and writes: it is rank 0, or the only one."""
    return launcher_rank() in (None, 0)


def is_tcp_ring() -> bool:
    """Whether ranks form a ring over TCP, which notices a lost rank at once and can be joined again."""
    return HOSTFILE_VARIABLE in os.environ


def is_nccl() -> bool:
    """Whether ranks are CUDA GPUs, which do all-reduce and all-gather themselves."""
    return "NCCL_HOST_IP" in os.environ


def _is_single_rank_ring() -> bool:
    if not is_tcp_ring():
        return False
    try:
        return len(json.loads(Path(os.environ[HOSTFILE_VARIABLE]).read_text() or "[]")) < 2
    except (OSError, ValueError):
        return False  # mlx reports what is wrong with it
