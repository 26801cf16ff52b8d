"""What commands that run a model without training report of this machine; `train` has notes of its own."""

from __future__ import annotations

from mlx_dpo.cli.console import print_message


def print_backend_notes() -> None:
    """Print which operations of mlx are wrong here and avoided. Raises `UserError` if one can't be avoided."""
    from mlx_dpo.forward.backend_check import require_usable_backend

    for text in require_usable_backend():
        print_message(f"Note: {text}")
