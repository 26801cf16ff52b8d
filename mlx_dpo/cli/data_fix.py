"""The command `mlx-dpo data fix`."""

from __future__ import annotations

from typing import Annotated, Any

from mlx_dpo.cli.config_options import RENDERING_SETTINGS, JsonFlag, model_option, with_config_options
from mlx_dpo.cli.console import print_json, print_message, print_text, stderr_console, stdout_console
from mlx_dpo.cli.row_arguments import File, OutputFile, load_tokenizer, progress_bar
from mlx_dpo.config import COLUMN_SETTINGS, TrainConfig


@with_config_options((*RENDERING_SETTINGS, *COLUMN_SETTINGS))
def fix(
    flags: dict[str, Any],
    file: File,
    out: OutputFile,
    model: Annotated[
        str | None,
        model_option("Folder or Hub id of a model: fix also what its chat template can't take as it is."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write the rows without those that teach nothing, and list every change with its line.

    Left out are rows whose completions are equal, rows with an empty prompt or completion, and duplicates. Nulls that a
    table format put into tools are removed. With --model, texts that a chat template had rendered already become
    messages again, and a system turn that the template refuses is put in front of the first user turn. Rows that need
    nothing are written as they are; --json lists all changes.

    Examples:
      mlx-dpo data fix pairs.jsonl fixed.jsonl
      mlx-dpo data fix pairs.jsonl fixed.jsonl --model ./gemma-2-2b-it-4bit --json
    """
    from mlx_dpo.cli.tables.fix_table import print_fix_report
    from mlx_dpo.data.chat_rendering import ChatRenderer
    from mlx_dpo.data.row_fixing import fix_rows
    from mlx_dpo.errors import UserError

    if json and out == "-":
        raise UserError("--json and the rows would both be printed to stdout", hint="Name a file for the rows.")
    config = TrainConfig.from_mapping(flags)
    renderer = None
    if model:
        kwargs = config.chat_template_kwargs or {}
        renderer = ChatRenderer(load_tokenizer(model), raw=config.raw, template_kwargs=kwargs)
    with progress_bar(f"Reading {file}") as progress:
        report = fix_rows(file, out, renderer=renderer, columns=config.columns, on_progress=progress)
    if json:
        print_json({**report.to_json(), "out": out})
        return
    is_stdout = out == "-"
    print_fix_report(report, stderr_console if is_stdout else stdout_console)
    text = f"{report.written:,} rows in {'stdout' if is_stdout else out}, of {report.rows:,}"
    (print_message if is_stdout else print_text)(text)
