"""Optimizer batches and set-up shared by training and evaluation, and the evaluation commands.

Shared with training: `optimizer_batch`, `scored_batch`, `metrics`, `example_sets`, `row_batches`, `loss_setup` and
`reference_setup`. Evaluation: held-out metrics, implicit rewards, judged completions and benchmark tasks.
"""
