"""mlx-dpo compare"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.errors import UserError


def compare(
    model: Annotated[str | None, typer.Option(help="Model folder or Hub id. Default: the adapter's.")] = None,
    adapter_path: Annotated[Path, typer.Option(help="Adapter folder.")] = Path("adapters"),
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given several times.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="File of prompts: one a line (.txt), or rows with a prompt (.jsonl, .json).")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts of the file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temp: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this mass.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what the model and the tuned model answer, side by side.

    Without --prompt or --prompts, prompts are read from the keyboard, one a line.

    [bold]Examples[/]

      mlx-dpo compare --prompt "How do I boil an egg?"

      mlx-dpo compare --adapter-path runs/a --prompts valid.jsonl --num-prompts 5 --temp 0.7
    """
    from mlx_dpo.data.prompt_files import read_prompts

    asked = [*(prompt or []), *(read_prompts(prompts)[:num_prompts] if prompts else [])] or _typed()
    from mlx_dpo.adapters.adapter_folder import adapter_base_model
    from mlx_dpo.sampling.generation import SamplingParams, generate_before_and_after

    model = model or adapter_base_model(adapter_path)
    with stderr_console.status("Answering"):
        both = generate_before_and_after(model, adapter_path, asked, SamplingParams(max_tokens, temp, top_p, seed))
    if json:
        print_json({"answers": [{"prompt": p, "base": b, "tuned": t} for p, b, t in zip(asked, *both, strict=True)]})
    else:
        stdout_console.print(_table(asked, *both))


def _typed() -> list[Any]:
    if sys.stdin.isatty():
        stderr_console.print("Type prompts, one a line, and end with Ctrl-D.")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("no prompts given", hint="Use --prompt TEXT or --prompts FILE.")
    return lines


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m.get('content')}" for m in prompt)


def _table(asked: list[Any], base: list[str], tuned: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("prompt", "base", "tuned", show_lines=True)
    for row in zip(asked, base, tuned, strict=True):
        table.add_row(Text(_prompt_text(row[0])), Text(row[1]), Text(row[2]))
    return table
