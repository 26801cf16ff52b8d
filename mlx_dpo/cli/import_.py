"""mlx-dpo import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.console import print_json, stderr_console, stdout_console


def import_(
    folder: Annotated[Path, typer.Argument(metavar="PEFT_FOLDER", help="Folder of an adapter that PEFT saved.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the adapter as mlx-lm reads it.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or Hub id it is for. Default: what the adapter calls its base.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make an adapter trained with PEFT (LoRA, rsLoRA, DoRA) one that mlx-lm and mlx-dpo read.

    A run can start from it: mlx-dpo train --init-adapter OUT.

    [bold]Examples[/]

      mlx-dpo import ./peft-adapter ./adapter

      mlx-dpo import ./peft-adapter ./adapter --model ./Qwen3-4B-4bit
    """
    from mlx_dpo.adapters.adapter_folder import adapter_base_model
    from mlx_dpo.export.peft.peft_import import import_peft

    with stderr_console.status("Importing"):
        spec = import_peft(folder, out, model=model)
    if json:
        print_json({"path": str(out), "model": adapter_base_model(out), **spec.to_json()})
        return
    stdout_console.print(
        f"The adapter is in {out}: {spec.fine_tune_type}, rank {spec.rank}, scale {spec.scale:g}, "
        f"the last {spec.num_layers} layers. Next:",
        soft_wrap=True,
        markup=False,
    )
    stdout_console.print(
        f"  mlx-dpo train --init-adapter {out} --model {adapter_base_model(out)} --data pairs.jsonl", soft_wrap=True
    )
