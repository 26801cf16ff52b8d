"""The command `mlx-dpo import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.config_options import JsonFlag, model_option
from mlx_dpo.cli.console import print_json, print_text, stderr_console
from mlx_dpo.utils.formatting import shell_command


def import_(
    folder: Annotated[Path, typer.Argument(metavar="PEFT_FOLDER", help="Folder of an adapter that PEFT saved.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the adapter in mlx-lm's format.")],
    model: Annotated[
        str | None, model_option("Model folder or Hub id. Default: what the adapter names as its base model.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Convert an adapter trained with PEFT (LoRA, rsLoRA, DoRA) to the format of mlx-lm and mlx-dpo.

    A run can start from it: mlx-dpo train --init-adapter OUT.

    Examples:
      mlx-dpo import ./peft-adapter ./adapter
      mlx-dpo import ./peft-adapter ./adapter --model ./Qwen3-4B-4bit
    """
    from mlx_dpo.adapters.adapter_folder import adapter_base_model
    from mlx_dpo.export.peft.peft_import import import_peft
    from mlx_dpo.reporting.phase_progress import PhaseProgress

    with PhaseProgress(stderr_console) as progress:
        progress.begin("Importing")
        spec = import_peft(folder, out, model=model)
    base_model = adapter_base_model(out)
    if json:
        print_json({"path": str(out), "model": base_model, **spec.to_json()})
        return
    print_text(
        f"The adapter is in {out}: {spec.fine_tune_type}, rank {spec.rank}, scale {spec.scale:g}, "
        f"the last {spec.num_layers} layers. Next:"
    )
    train = shell_command("mlx-dpo", "train", "--init-adapter", out, "--model", base_model, "--data", "pairs.jsonl")
    print_text(f"  {train}")
