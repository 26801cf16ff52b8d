"""What commands that run a model without training report of this machine; `train` has notes of its own."""

from __future__ import annotations

import sys

from mlx_dpo.cli.console import print_message


def print_backend_notes() -> None:
    """Print which operations of mlx are wrong here and avoided. Raises `UserError` if one can't be avoided."""
    from mlx_dpo.forward.backend_check import require_usable_backend

    for text in require_usable_backend():
        print_message(f"Note: {text}")


def print_blas_note() -> None:
    """Print how to load a faster BLAS, if mlx computes with its own on a Linux machine's CPU."""
    if sys.platform != "linux":
        return
    from mlx_dpo.doctor.backend_checks import check_blas, preloaded_blas
    from mlx_dpo.forward.device import runs_on_cpu

    outcome = check_blas("CPU" if runs_on_cpu() else "GPU", preloaded_blas())
    if outcome.advice is not None:
        print_message(f"Note: {outcome.detail}. {outcome.advice}")
