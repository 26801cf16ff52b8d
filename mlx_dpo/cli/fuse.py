"""mlx-dpo fuse"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_dpo.cli.console import notes, print_json, results
from mlx_dpo.cli.export import GGUFType

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_dpo.export.fuse.fuse_result import Fused


class Bits(str, Enum):
    """What --bits takes."""

    AUTO, SAME, FIVE, SIX, EIGHT, NONE = "auto", "same", "5", "6", "8", "none"


def fuse(
    model: Annotated[str | None, typer.Option(help="Model folder or Hub id. Default: the adapter's.")] = None,
    adapter_path: Annotated[Path, typer.Option(help="Adapter folder.")] = Path("adapters"),
    save_path: Annotated[Path, typer.Option(help="Folder for the fused model.")] = Path("fused_model"),
    bits: Annotated[
        Bits,
        typer.Option(
            help="Of the adapted layers. auto: as few as keep 95% of the margin, block by block. same: the base's own. "
            "none: the whole model in float."
        ),
    ] = Bits.AUTO,
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
    from mlx_dpo.adapters.adapter_folder import model_of
    from mlx_dpo.export.card.model_card import write_card
    from mlx_dpo.export.card.training_record import carry_record
    from mlx_dpo.export.fuse.fuse_adapter import fuse as run
    from mlx_dpo.export.fuse.fuse_result import TooLittleKept

    if gguf is not None:
        from mlx_dpo.export.gguf.gguf_export import require_gguf, write_gguf

        require_gguf()
    try:
        with notes.status("Loading") as status:
            fused = run(
                model or model_of(adapter_path),
                adapter_path,
                save_path,
                bits="none" if dequantize else bits.value,
                calibrate=calibrate,
                force=force,
                say=status.update,
            )
    except TooLittleKept as error:
        notes.print(_table(error.fused))
        raise
    carry_record(adapter_path, fused.path, fused.to_mapping())
    write_card(fused.path)
    if gguf is not None:
        with notes.status("Writing the GGUF file"):
            write_gguf(fused.path, gguf, gguf_type.value)
    if json:
        print_json({**fused.to_mapping(), **({"gguf": str(gguf)} if gguf else {})})
        return
    results.print(_table(fused))
    if fused.note:
        results.print(fused.note, soft_wrap=True, markup=False)
    results.print(f"The fused model is in {fused.path}. Next:", soft_wrap=True)
    results.print(f"  mlx_lm.generate --model {fused.path} --prompt 'Your question'", soft_wrap=True, markup=False)
    if gguf is not None:
        results.print(f"  llama-cli -m {gguf} -p 'Your question'", soft_wrap=True, markup=False)


def _table(fused: Fused) -> Table:
    from rich.table import Table

    from mlx_dpo.export.fuse.fuse_result import COLUMNS

    table = Table(COLUMNS[0], COLUMNS[1], title="Held-out pairs", title_justify="left")
    for column in COLUMNS[2:]:
        table.add_column(column, justify="right")
    for row in fused.rows:
        table.add_row(*row.cells, style="bold" if row is fused.row else None)
    return table
