"""mlx-dpo fuse"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.cli.export import GGUFType

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_dpo.export.fuse.fuse_result import FusedModelReport


class FuseBits(str, Enum):
    """What --bits takes."""

    AUTO, SAME, FIVE, SIX, EIGHT, NONE = "auto", "same", "5", "6", "8", "none"


def fuse(
    model: Annotated[str | None, typer.Option(help="Model folder or Hub id. Default: the adapter's.")] = None,
    adapter_path: Annotated[Path, typer.Option(help="Adapter folder.")] = Path("adapters"),
    save_path: Annotated[Path, typer.Option(help="Folder for the fused model.")] = Path("fused_model"),
    bits: Annotated[
        FuseBits,
        typer.Option(
            help="Of the adapted layers. auto: as few as keep 95% of the margin, block by block. same: the base's own. "
            "none: the whole model in float."
        ),
    ] = FuseBits.AUTO,
    calibrate: Annotated[
        str | None, typer.Option(help="Pairs to measure on, held out from training. Default: those the run held out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Save a model that keeps less than 95%, too.")] = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="The same as --bits none, by mlx-lm's name.")
    ] = False,
    gguf: Annotated[
        Path | None, typer.Option(help="Write the fused model as this GGUF file, too, for llama.cpp and LM Studio.")
    ] = None,
    gguf_type: Annotated[GGUFType, typer.Option(help="Of --gguf: f16, or q8_0, half as large.")] = GGUFType.f16,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fold an adapter into its model, keep what was trained, and save a model folder that mlx-lm loads.

    Rounding to the base's bits again can drown a small update. Base, adapter and fused model are measured on held-out
    pairs, and layers get the bits that keep the margin. A run trained with --fuse-bits needs no more than the base's.

    [bold]Examples[/]

      mlx-dpo fuse --adapter-path adapters --save-path ./Qwen3-4B-mine

      mlx-dpo fuse --bits 8 --calibrate valid.jsonl --save-path ./Qwen3-4B-mine

      mlx-dpo fuse --model ./Qwen3-4B-4bit --bits none --save-path ./Qwen3-4B-mine-bf16
    """
    from mlx_dpo.adapters.adapter_folder import adapter_base_model
    from mlx_dpo.export.card.model_card import write_card
    from mlx_dpo.export.card.training_record import copy_training_record
    from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter as run
    from mlx_dpo.export.fuse.fuse_result import MarginLostError

    if gguf is not None:
        from mlx_dpo.export.gguf.gguf_export import import_gguf, write_gguf

        import_gguf()
    try:
        with stderr_console.status("Loading") as status:
            fused = run(
                model or adapter_base_model(adapter_path),
                adapter_path,
                save_path,
                bits="none" if dequantize else bits.value,
                calibrate=calibrate,
                force=force,
                on_progress=status.update,
            )
    except MarginLostError as error:
        stderr_console.print(_table(error.report))
        raise
    copy_training_record(adapter_path, fused.path, fused.to_mapping())
    write_card(fused.path)
    if gguf is not None:
        with stderr_console.status("Writing the GGUF file"):
            write_gguf(fused.path, gguf, gguf_type.value)
    if json:
        print_json({**fused.to_mapping(), **({"gguf": str(gguf)} if gguf else {})})
        return
    stdout_console.print(_table(fused))
    if fused.note:
        stdout_console.print(fused.note, soft_wrap=True, markup=False)
    stdout_console.print(f"The fused model is in {fused.path}. Next:", soft_wrap=True)
    stdout_console.print(
        f"  mlx_lm.generate --model {fused.path} --prompt 'Your question'", soft_wrap=True, markup=False
    )
    if gguf is not None:
        stdout_console.print(f"  llama-cli -m {gguf} -p 'Your question'", soft_wrap=True, markup=False)


def _table(fused: FusedModelReport) -> Table:
    from rich.table import Table

    from mlx_dpo.export.fuse.fuse_result import FUSE_TABLE_COLUMNS

    table = Table(FUSE_TABLE_COLUMNS[0], FUSE_TABLE_COLUMNS[1], title="Held-out pairs", title_justify="left")
    for column in FUSE_TABLE_COLUMNS[2:]:
        table.add_column(column, justify="right")
    for row in fused.measurements:
        table.add_row(*row.table_cells, style="bold" if row is fused.fused_model else None)
    return table
