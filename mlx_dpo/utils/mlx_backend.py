"""Whether mlx can run: on Linux it has no backend unless an extra installs one."""

from __future__ import annotations

import platform

from mlx_dpo.errors import UserError

_ON_LINUX = (
    "Install one: uv tool install 'mlx-dpo[cpu]', or pip install 'mlx-dpo[cpu]'; cuda13 instead of cpu for an NVIDIA "
    "GPU. Without installing: uvx --from 'mlx-dpo[cpu]' mlx-dpo demo"
)
_ON_MAC = "Install mlx-dpo again, with a Python for Apple silicon: uv tool install --force --python 3.13 mlx-dpo"


def backend_error(error: ImportError) -> UserError | None:
    """What to say of an import that failed because mlx is missing or lacks its compiled library.

    Args:
        error: of any import.

    Returns:
        The sentence, with the install line; None if the error has another cause.
    """
    if error.name not in ("mlx", "mlx.core", "mlx.nn") and "libmlx" not in str(error):
        return None
    return UserError("mlx has no backend here", hint=install_hint())


def install_hint() -> str:
    """How to install mlx with a backend on this machine."""
    return _ON_MAC if platform.system() == "Darwin" else _ON_LINUX
