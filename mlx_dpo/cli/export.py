"""The command `mlx-dpo export`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.config_options import JsonFlag, model_option
from mlx_dpo.cli.console import print_json, print_text, stderr_console
from mlx_dpo.errors import UserError
from mlx_dpo.utils.formatting import format_bytes, shell_command
from mlx_dpo.utils.progress import Progress

if TYPE_CHECKING:
    from mlx_dpo.export.ollama.modelfile import GGUFWithModelfile


class ExportFormat(StrEnum):
    """The values of --format."""

    peft = "peft"
    gguf = "gguf"
    gguf_lora = "gguf-lora"


class GGUFType(StrEnum):
    """The values of --gguf-type: the types of matrices in a GGUF file."""

    f32 = "f32"
    f16 = "f16"
    q8_0 = "q8_0"


NEXT_COMMANDS: dict[ExportFormat, Callable[[Path], str]] = {
    ExportFormat.peft: lambda out: f"PeftModel.from_pretrained(model, {str(out)!r})",
    ExportFormat.gguf: lambda out: shell_command("llama-cli", "-m", out, "-p", "Your question"),
    ExportFormat.gguf_lora: lambda out: shell_command(
        "llama-cli", "-m", "MODEL.gguf", "--lora", out, "-p", "Your question"
    ),
}
UNUSED_OPTIONS = {
    ExportFormat.peft: ("gguf_type",),
    ExportFormat.gguf: ("adapter_path", "base_model"),
    ExportFormat.gguf_lora: ("gguf_type", "base_model"),
}
FUSE_HINT = "Fuse the adapter first: `mlx-dpo fuse`, then --model FUSED_FOLDER."


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write: a folder for peft, else a .gguf file.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="peft: an adapter for PEFT. gguf: a whole model for llama.cpp. gguf-lora: an adapter for llama.cpp."
        ),
    ],
    adapter_path: Annotated[
        Path | None, typer.Option(help="Adapter folder, for peft and gguf-lora. Default: adapters.")
    ] = None,
    model: Annotated[
        str | None,
        model_option("Model folder or Hub id. Default: the adapter's model. Required for gguf: the model to write."),
    ] = None,
    gguf_type: Annotated[
        GGUFType | None,
        typer.Option(help="gguf: f16 (default), q8_0 (half as large, nearly as good), or f32 (to quantize further)."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="peft: the base model in transformers. Default: the model that the adapter was trained on, or that "
            "this was quantized from, if that is known."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write an adapter or a model in another library's format.

    A PEFT adapter loads in transformers, vLLM and other libraries that read PEFT; its layers have transformers' names.
    A GGUF file holds the model with its tokenizer and chat template, for llama.cpp, LM Studio and Ollama; fuse the
    adapter into the model first. Beside it stands NAME.Modelfile, for `ollama create`. Adapters and models that a
    format can't represent are refused.

    Examples:
      mlx-dpo export --format peft --adapter-path runs/a ./runs-a-peft
      mlx-dpo export --format gguf --model ./fused_model --gguf-type q8_0 ./mine.gguf
      mlx-dpo export --format gguf-lora --adapter-path runs/a ./runs-a.gguf
    """
    from mlx_dpo.reporting.phase_progress import PhaseProgress

    options = {"adapter_path": adapter_path, "gguf_type": gguf_type, "base_model": base_model}
    for name in UNUSED_OPTIONS[format]:
        if options[name] is not None:
            flag = "--" + name.replace("_", "-")
            hint = FUSE_HINT if name == "adapter_path" else None
            raise UserError(f"{flag} has no effect with --format {format.value}", field=name, hint=hint)
    gguf = None
    with PhaseProgress(stderr_console) as progress:
        progress.begin("Loading")
        if format is ExportFormat.gguf:
            gguf = _write_model(out, model, gguf_type or GGUFType.f16, progress)
        else:
            _write_adapter(out, format, adapter_path or Path("adapters"), model, base_model, progress)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    if json:
        print_json({"path": str(out), "format": format.value, "bytes": size, **(modelfile_json(gguf) if gguf else {})})
        return
    print_text(f"Written to {out} ({format_bytes(size)}). Next:")
    print_text(f"  {NEXT_COMMANDS[format](out)}")
    if gguf is not None:
        print_modelfile(gguf)


def print_modelfile(written: GGUFWithModelfile) -> None:
    """Print how Ollama takes a GGUF file, and what to know about that."""
    print_text(f"  {written.create_command}")
    for note in written.notes:
        print_text(f"Note on {written.modelfile}: {note}.")


def modelfile_json(written: GGUFWithModelfile) -> dict[str, Any]:
    """The keys on the Modelfile in the JSON of a command that writes a GGUF file."""
    return {"modelfile": str(written.modelfile), "modelfile_notes": list(written.notes)}


def _write_model(out: Path, model: str | None, gguf_type: GGUFType, progress: Progress) -> GGUFWithModelfile:
    from mlx_dpo.export.ollama.modelfile import write_gguf_with_modelfile

    if model is None:
        hint = "Name a model folder with --model. `mlx-dpo fuse` makes one of an adapter and its model."
        raise UserError("--format gguf writes a whole model", field="model", hint=hint)
    return write_gguf_with_modelfile(model, out, gguf_type.value, progress=progress)


def _write_adapter(
    out: Path,
    format: ExportFormat,
    adapter_path: Path,
    model: str | None,
    base_model: str | None,
    progress: Progress,
) -> None:
    from mlx_dpo.adapters.adapter_folder import adapter_base_model

    model = model or adapter_base_model(adapter_path)
    progress.begin(f"Writing {out}")
    if format is ExportFormat.peft:
        from mlx_dpo.export.peft.peft_export import export_peft

        export_peft(model, adapter_path, out, base_model=base_model)
    else:
        from mlx_dpo.export.gguf.gguf_export import write_gguf_lora

        write_gguf_lora(model, adapter_path, out)
