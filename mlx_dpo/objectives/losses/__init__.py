"""Losses: a file for each method. A new file here is found by `loss_registry`; nothing else has to know of it.

A loss is a pure function decorated with `declare_loss`. Its settings and their defaults are the keyword arguments in
its signature; the docstring's sections `Formula`, `Paper` and `When to use` are what `mlx-dpo losses` prints. In
formulas, r is a log-ratio log pi - log pi_ref, w the chosen answer and l the rejected one. Examples use
`mlx_dpo.objectives.loss_inputs.example_pairs`.
"""
