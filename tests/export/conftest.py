"""Commands run as in tests/cli."""

from tests.cli.conftest import mlx_dpo

__all__ = ["mlx_dpo"]
