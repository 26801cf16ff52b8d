"""Losses, one file per method. `loss_registry` discovers a new file here.

A loss is a pure function decorated with `declare_loss`. Its settings and their defaults are the keyword arguments in
its signature; each must also be a field of `TrainConfig` (None by default), which makes its flag. The docstring's
sections `Formula`, `Paper` and `When to use` are what `mlx-dpo losses` prints. In formulas, r is a log-ratio
log pi - log pi_ref, w the chosen completion and l the rejected one. Examples use
`mlx_dpo.objectives.loss_inputs.example_pairs`.
"""
