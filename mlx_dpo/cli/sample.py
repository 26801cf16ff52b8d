"""The command `mlx-dpo sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.adapter_rendering import rendering_config
from mlx_dpo.cli.backend_notes import print_backend_notes
from mlx_dpo.cli.config_options import (
    RENDERING_SETTINGS,
    AdapterModel,
    JsonFlag,
    MaxTokens,
    MinP,
    Seed,
    Temperature,
    TopP,
    with_config_options,
)
from mlx_dpo.cli.console import print_json, print_text, stderr_console


@with_config_options(RENDERING_SETTINGS)
def sample(
    flags: dict[str, Any],
    prompts: Annotated[
        str, typer.Option(help="File of prompts: one per line (.txt), or rows of any format (.jsonl, .csv, ...).")
    ],
    model: AdapterModel = None,
    adapter_path: Annotated[Path | None, typer.Option(help="Adapter folder. Default: no adapter.")] = None,
    output: Annotated[Path, typer.Option(help="File to write: a row for each prompt.")] = Path("samples.jsonl"),
    n: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 4,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a completion, which ends before it; can be repeated.")
    ] = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most completions side by side. Default: as many as fit in memory, and at most 32."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Sample completions of prompts from a model or an adapter, for `mlx-dpo label` or `mlx-dpo score`.

    Each line of --output has a `prompt` with its `completions`, `token_counts`, `finish_reasons` ("stop", or "length"
    at --max-tokens) and `seed`. A prompt's seed is --seed plus its number in the file; its completions depend on that,
    and not on what else is sampled. If --output exists, the same command resumes after its last complete group of
    prompts. With an adapter, prompts are rendered as in the run that trained it, if its folder has a config.yaml.

    Examples:
      mlx-dpo sample --model ./Qwen3-4B-4bit --prompts prompts.txt --n 8 --output samples.jsonl
      mlx-dpo sample --adapter-path adapters --prompts train.jsonl --temperature 0.7 --top-p 0.95 --max-tokens 512
    """
    config = rendering_config(adapter_path, flags)
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.sampling.completions import SamplingParams
    from mlx_dpo.sampling.sample_prompts import sample as sample_prompts

    params = SamplingParams(max_tokens, temperature, top_p, seed, min_p, tuple(stop or ()))
    print_backend_notes()
    with PhaseProgress(stderr_console) as progress:
        summary = sample_prompts(
            model,
            prompts,
            output,
            params,
            adapter_path=adapter_path,
            n=n,
            batch_size=batch_size,
            raw=config.raw,
            template_kwargs=config.chat_template_kwargs or {},
            progress=progress,
        )
    if json:
        print_json({"output": str(output), **summary})
        return
    rate = summary["tokens_per_second"]
    speed = f", {rate:,.0f} tokens a second" if rate else "; all of them were there already"
    counts = [f"{summary[name]:,} {name}" for name in ("prompts", "completions", "tokens")]
    print_text(f"{', '.join(counts)}{speed}.")
    if num_cut := summary["finish_reasons"]["length"]:
        print_text(f"{num_cut:,} completions were cut off at {max_tokens:,} tokens (--max-tokens).")
    print_text(f"They are in {output}.")
