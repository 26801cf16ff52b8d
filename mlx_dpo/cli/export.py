"""mlx-dpo export"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.errors import UserError


class ExportFormat(str, Enum):
    """What an export is for."""

    peft = "peft"
    gguf = "gguf"
    gguf_lora = "gguf-lora"


class GGUFType(str, Enum):
    """How a GGUF file stores matrices."""

    f16 = "f16"
    q8_0 = "q8_0"


NEXT_COMMANDS = {
    ExportFormat.peft: "  PeftModel.from_pretrained(model, '{}')",
    ExportFormat.gguf: "  llama-cli -m {} -p 'Your question'",
    ExportFormat.gguf_lora: "  llama-cli -m MODEL.gguf --lora {} -p 'Your question'",
}


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write: a folder for peft, a .gguf file else.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="peft: an adapter for PEFT. gguf: a whole model for llama.cpp. gguf-lora: an adapter for it."
        ),
    ],
    adapter_path: Annotated[
        Path | None, typer.Option(help="Adapter folder, for peft and gguf-lora. Default: adapters.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or Hub id. Default: the adapter's. For gguf: the model to write.")
    ] = None,
    gguf_type: Annotated[
        GGUFType | None, typer.Option(help="gguf: f16 (the default), or q8_0, half as large and nearly as good.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="peft: the model transformers loads it onto. Default: what the model's card calls its base."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write an adapter or a model in another library's format.

    An adapter for PEFT loads in transformers, vLLM and what else reads PEFT's; layers are named as transformers names
    them. A GGUF file holds the model with its tokenizer and chat template, for llama.cpp, Ollama and LM Studio; fuse
    the adapter into the model first. What a format can't hold is refused.

    [bold]Examples[/]

      mlx-dpo export --format peft --adapter-path runs/a ./runs-a-peft

      mlx-dpo export --format gguf --model ./fused_model --gguf-type q8_0 ./mine.gguf

      mlx-dpo export --format gguf-lora --adapter-path runs/a ./runs-a.gguf
    """
    _refuse_idle(format, adapter_path=adapter_path, gguf_type=gguf_type, base_model=base_model)
    with stderr_console.status("Exporting"):
        _write(out, format, adapter_path or Path("adapters"), model, gguf_type or GGUFType.f16, base_model)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    if json:
        print_json({"path": str(out), "format": format.value, "bytes": size})
        return
    stdout_console.print(f"Written to {out} ({size / 1e6:,.1f} MB). Next:", soft_wrap=True, markup=False)
    stdout_console.print(NEXT_COMMANDS[format].format(out), soft_wrap=True, markup=False)


def _write(
    out: Path, format: ExportFormat, adapter_path: Path, model: str | None, gguf_type: GGUFType, base_model: str | None
) -> None:
    from mlx_dpo.adapters.adapter_folder import adapter_base_model

    if format is ExportFormat.peft:
        from mlx_dpo.export.peft.peft_export import export_peft

        export_peft(model or adapter_base_model(adapter_path), adapter_path, out, base_model=base_model)
    elif format is ExportFormat.gguf:
        from mlx_dpo.export.gguf.gguf_export import write_gguf

        if model is None:
            hint = "Name a model folder with --model; `mlx-dpo fuse` makes one of an adapter and its model."
            raise UserError("--format gguf writes a whole model", field="model", hint=hint)
        write_gguf(model, out, gguf_type.value)
    else:
        from mlx_dpo.export.gguf.gguf_export import write_gguf_lora

        write_gguf_lora(model or adapter_base_model(adapter_path), adapter_path, out)


UNUSED_OPTIONS = {
    ExportFormat.peft: ("gguf_type",),
    ExportFormat.gguf: ("adapter_path", "base_model"),
    ExportFormat.gguf_lora: ("gguf_type", "base_model"),
}


def _refuse_idle(format: ExportFormat, **given: object) -> None:
    for name in UNUSED_OPTIONS[format]:
        if given[name] is not None:
            hint = (
                "Fuse the adapter first: `mlx-dpo fuse`, then --model FUSED_FOLDER." if name == "adapter_path" else None
            )
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} has no part in --format {format.value}", field=name, hint=hint)
