"""mlx-dpo fuse"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.output import notes, print_json, results


def fuse(
    model: Annotated[str | None, typer.Option(help="Model folder or Hub id. Default: the adapter's.")] = None,
    adapter_path: Annotated[Path, typer.Option(help="Adapter folder.")] = Path("adapters"),
    save_path: Annotated[Path, typer.Option(help="Folder for the fused model.")] = Path("fused_model"),
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Keep all weights in float: larger, and nothing is rounded away.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fold an adapter into its model and save a model folder that mlx-lm loads.

    Rounding the result to the base's bits again can drown a small update; `mlx-dpo evaluate --model fused
    --reference base` shows what is left of it. --dequantize rounds nothing.

    [bold]Examples[/]

      mlx-dpo fuse --adapter-path adapters --save-path ./Qwen3-4B-mine

      mlx-dpo fuse --model ./Qwen3-4B-4bit --dequantize --save-path ./Qwen3-4B-mine-bf16
    """
    from mlx_dpo.export.card import write_card
    from mlx_dpo.export.fuse import fuse as run
    from mlx_dpo.export.record import carry_record
    from mlx_dpo.model.loading import model_of

    with notes.status("Fusing"):
        folder = run(model or model_of(adapter_path), adapter_path, save_path, dequantize=dequantize)
    carry_record(adapter_path, folder)
    write_card(folder)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    if json:
        print_json({"path": str(folder), "bytes": size})
        return
    results.print(f"The fused model is in {folder} ({size / 1e6:,.1f} MB of weights). Next:", soft_wrap=True)
    results.print(f"  mlx_lm.generate --model {folder} --prompt 'Your question'", soft_wrap=True, markup=False)
