"""`python -m mlx_dpo` is `mlx-dpo`."""

from mlx_dpo.cli import main

main()
