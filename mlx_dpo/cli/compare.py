"""The command `mlx-dpo compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.adapter_rendering import rendering_config
from mlx_dpo.cli.config_options import (
    RENDERING_SETTINGS,
    AdapterModel,
    AdapterPath,
    JsonFlag,
    MaxTokens,
    Seed,
    Temperature,
    TopP,
    with_config_options,
)
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.cli.tables.completion_table import completion_table
from mlx_dpo.errors import UserError


@with_config_options(RENDERING_SETTINGS)
def compare(
    flags: dict[str, Any],
    model: AdapterModel = None,
    adapter_path: AdapterPath = Path("adapters"),
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; can be repeated.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="File of prompts: one per line (.txt), or rows with a prompt (.jsonl, .csv, ...)."),
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Use only the first N prompts of the file.")] = None,
    max_tokens: MaxTokens = 256,
    temp: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    json: JsonFlag = False,
) -> None:
    """Show completions of the model without and with the adapter, side by side.

    Without --prompt and --prompts, prompts are read from the keyboard, one per line. They are rendered as in the run
    that trained the adapter, if its folder has a config.yaml.

    Examples:
      mlx-dpo compare --prompt "How do I boil an egg?"
      mlx-dpo compare --adapter-path runs/a --prompts valid.jsonl --num-prompts 5 --temp 0.7
    """
    from mlx_dpo.data.examples import Prompt
    from mlx_dpo.data.prompt_files import read_prompts

    texts = list(prompt or [])
    from_file = read_prompts(prompts)[:num_prompts] if prompts else []
    all_prompts = [*map(Prompt, texts or ([] if prompts else _read_stdin())), *from_file]
    config = rendering_config(adapter_path, flags)
    from mlx_dpo.adapters.adapter_folder import adapter_base_model, read_adapter_spec
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.sampling.completions import SamplingParams
    from mlx_dpo.sampling.generation import generate_before_and_after

    model = model or adapter_base_model(adapter_path)
    read_adapter_spec(adapter_path)  # before a model is loaded
    sampling = SamplingParams(max_tokens, temp, top_p, seed)
    with PhaseProgress(stderr_console) as progress:
        progress.begin("Loading the model and generating")
        base, tuned = generate_before_and_after(
            model,
            adapter_path,
            all_prompts,
            sampling,
            raw=config.raw,
            template_kwargs=config.chat_template_kwargs or {},
        )
    rows = list(zip([prompt.prompt for prompt in all_prompts], base, tuned, strict=True))
    if json:
        print_json({"answers": [{"prompt": row[0], "base": row[1], "tuned": row[2]} for row in rows]})
    else:
        stdout_console.print(completion_table(("prompt", "base", "tuned"), rows))


def _read_stdin() -> list[str]:
    if sys.stdin.isatty():
        stderr_console.print("Type prompts, one per line, and end with Ctrl-D.")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("there are no prompts to complete", hint="Use --prompt TEXT or --prompts FILE.")
    return lines
