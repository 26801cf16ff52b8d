"""The command `mlx-dpo fuse`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.config_options import AdapterModel, AdapterPath, JsonFlag
from mlx_dpo.cli.console import print_json, print_text, stderr_console, stdout_console
from mlx_dpo.cli.export import GGUFType, modelfile_json, print_modelfile
from mlx_dpo.utils.formatting import shell_command


class BitsChoice(StrEnum):
    """The values of --bits."""

    AUTO, SAME, FIVE, SIX, EIGHT, NONE = "auto", "same", "5", "6", "8", "none"


def fuse(
    model: AdapterModel = None,
    adapter_path: AdapterPath = Path("adapters"),
    save_path: Annotated[Path, typer.Option(help="Folder for the fused model.")] = Path("fused_model"),
    bits: Annotated[
        BitsChoice,
        typer.Option(
            help="Bits of the adapted layers. auto: per block, the fewest that keep 95% of the margin. same: those of "
            "the base. none: the whole model unquantized."
        ),
    ] = BitsChoice.AUTO,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Pairs to measure on, not used in training. Default: the held-out pairs of the run."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Save the model even if it keeps less than 95%.")] = False,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="mlx-lm's name for --bits none.")] = False,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="Also write the fused model as this GGUF file, for llama.cpp and LM Studio, and NAME.Modelfile beside "
            "it, for Ollama."
        ),
    ] = None,
    gguf_type: Annotated[
        GGUFType, typer.Option(help="Type of the --gguf file: f16; q8_0, half as large; f32, to quantize further.")
    ] = GGUFType.f16,
    json: JsonFlag = False,
) -> None:
    """Merge an adapter into its model, keep what was trained, and save a model folder that mlx-lm loads.

    Requantizing to the base's bits can lose a small update. Therefore base, adapter and fused model are measured on
    held-out pairs, and layers get as many bits as keep the margin. After training with --fuse-bits, the base's bits
    are enough.

    Examples:
      mlx-dpo fuse --adapter-path adapters --save-path ./Qwen3-4B-mine
      mlx-dpo fuse --bits 8 --calibrate valid.jsonl --save-path ./Qwen3-4B-mine
      mlx-dpo fuse --model ./Qwen3-4B-4bit --bits none --save-path ./Qwen3-4B-mine-bf16
    """
    from mlx_dpo.adapters.adapter_folder import adapter_base_model
    from mlx_dpo.cli.tables.fuse_table import fuse_table
    from mlx_dpo.export.card.model_card import write_card
    from mlx_dpo.export.card.training_record import copy_training_record
    from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
    from mlx_dpo.export.fuse.fuse_result import FusedModelReport, MarginLostError
    from mlx_dpo.reporting.phase_progress import PhaseProgress

    if gguf is not None:
        from mlx_dpo.export.gguf.gguf_export import import_gguf
        from mlx_dpo.export.ollama.modelfile import require_modelfile_new, write_gguf_with_modelfile

        import_gguf()
        require_modelfile_new(gguf)

    def write_documents(folder: Path, report: FusedModelReport) -> None:
        copy_training_record(adapter_path, folder, report.to_mapping())
        write_card(folder, name=report.path.resolve().name)

    try:
        with PhaseProgress(stderr_console) as progress:
            fused = fuse_adapter(
                model or adapter_base_model(adapter_path),
                adapter_path,
                save_path,
                bits="none" if dequantize else bits.value,
                calibrate=calibrate,
                force=force,
                progress=progress,
                on_written=write_documents,
            )
    except MarginLostError as error:
        stderr_console.print(fuse_table(error.report))
        raise
    written = None
    if gguf is not None:
        with PhaseProgress(stderr_console) as progress:
            written = write_gguf_with_modelfile(fused.path, gguf, gguf_type.value, progress=progress)
    if json:
        print_json({**fused.to_mapping(), **({"gguf": str(gguf), **modelfile_json(written)} if written else {})})
        return
    stdout_console.print(fuse_table(fused))
    if fused.note:
        print_text(fused.note)
    print_text(f"The fused model is in {fused.path}. Next:")
    print_text("  " + shell_command("mlx_lm.generate", "--model", fused.path, "--prompt", "Your question"))
    if written is not None:
        print_text("  " + shell_command("llama-cli", "-m", written.file, "-p", "Your question"))
        print_modelfile(written)
