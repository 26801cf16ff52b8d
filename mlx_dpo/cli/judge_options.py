"""Options of the commands that take a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_dpo.cli.option_values import complete_judge

if TYPE_CHECKING:
    from mlx_dpo.judges.judge import Judge

JUDGE_HELP = "FILE.py:NAME, a model, an adapter (by its rewards), or the URL of an OpenAI-compatible API."
_PANEL = "Judge"

JudgeText = Annotated[
    str, typer.Option(metavar="JUDGE", autocompletion=complete_judge, help=JUDGE_HELP, rich_help_panel=_PANEL)
]
JudgeModel = Annotated[
    str | None, typer.Option(help="Model name in the API, or base model of an adapter.", rich_help_panel=_PANEL)
]
JudgeKeyEnv = Annotated[str, typer.Option(help="Environment variable with the API key.", rich_help_panel=_PANEL)]
Rubric = Annotated[
    Path | None,
    typer.Option(
        help="Text file with the prompt for a model or an API: {question}, {first}, {second}, and [[A]], [[B]], [[C]].",
        rich_help_panel=_PANEL,
    ),
]


def judge_from_options(judge: str, model: str | None, key_env: str, rubric: Path | None) -> Judge:
    """The judge that the options name. Raises `UserError`."""
    from mlx_dpo.evaluation.implicit_rewards import adapter_rewards
    from mlx_dpo.judges.judge_registry import load_judge
    from mlx_dpo.judges.rubric_prompt import read_rubric

    text = None if rubric is None else read_rubric(rubric)
    return load_judge(judge, model=model, api_key_env=key_env, adapter_rewards=adapter_rewards, rubric=text)
