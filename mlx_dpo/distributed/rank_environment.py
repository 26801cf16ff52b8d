"""What a launcher says of this process, by its environment: known before, and without, joining the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

# Of mlx.launch (ring, jaccl and NCCL alike), and of Open MPI's and other MPIs' mpirun.
RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
HOSTFILE_VARIABLE = "MLX_HOSTFILE"  # a file: for each rank of a ring over TCP its addresses


def launcher_rank() -> int | None:
    """The rank of this process in its group; None where no launcher started it, or started it alone."""
    given = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "")
    return int(given) if given.isdigit() and not _alone_on_its_ring() else None


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: rank 0, or alone."""
    return launcher_rank() in (None, 0)


def is_tcp_ring() -> bool:
    """Whether the group is a ring over TCP, which notices at once that a rank is lost, and can be joined again."""
    return HOSTFILE_VARIABLE in os.environ


def is_nccl() -> bool:
    """Whether the group is one of CUDA GPUs, which sum and gather themselves."""
    return "NCCL_HOST_IP" in os.environ


def _alone_on_its_ring() -> bool:
    if not is_tcp_ring():
        return False
    try:
        return len(json.loads(Path(os.environ[HOSTFILE_VARIABLE]).read_text() or "[]")) < 2
    except (OSError, ValueError):
        return False  # mlx says what is wrong with it
