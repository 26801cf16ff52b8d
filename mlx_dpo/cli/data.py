"""The command `mlx-dpo data` with its subcommands check, show, convert and fix."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mlx_dpo.cli.command_classes import AppCommand, AppGroup
from mlx_dpo.cli.config_options import ENCODING_SETTINGS, JsonFlag, model_option, with_config_options
from mlx_dpo.cli.console import print_json, print_message, print_text, stdout_console
from mlx_dpo.cli.data_fix import fix
from mlx_dpo.cli.row_arguments import FILE_KINDS, File, OutputFile, load_tokenizer, progress_bar
from mlx_dpo.config import COLUMN_SETTINGS, TrainConfig

app = typer.Typer(
    cls=AppGroup,
    help="""Inspect, convert and fix preference pairs before training on them.

    Examples:
      mlx-dpo data check pairs.jsonl
      mlx-dpo data show 1 pairs.jsonl --model ./Qwen3-4B-4bit
      mlx-dpo data convert ultrafeedback.json pairs.jsonl
      mlx-dpo data fix pairs.jsonl fixed.jsonl
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(cls=AppCommand)
@with_config_options(("max_length", *ENCODING_SETTINGS))
def check(
    flags: dict[str, Any],
    file: Annotated[str, typer.Argument(metavar="FILE", help=f"{FILE_KINDS}, a folder of them, or - for stdin.")],
    model: Annotated[
        str | None,
        model_option("Folder or Hub id of a model, whose tokenizer is loaded to measure lengths in tokens."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Check every row, and report formats, problems, duplicates and, with --model, lengths in tokens.

    In a folder, the train and valid files are read. Exit code 2 if there is any problem, 0 if there is none.

    Examples:
      mlx-dpo data check pairs.jsonl
      mlx-dpo data check ./data --model ./Qwen3-4B-4bit --max-length 1024
    """
    from mlx_dpo.cli.tables.data_check_tables import print_data_check
    from mlx_dpo.data.chat_encoding import ExampleEncoder
    from mlx_dpo.data.data_check import DataCheck

    files = _files_to_check(file)
    config = TrainConfig.from_mapping(flags)
    encoder = ExampleEncoder.from_config(config, load_tokenizer(model)) if model else None
    result = DataCheck(encoder, columns=config.columns)
    for name in files:
        with progress_bar(f"Reading {name}") as progress:
            result.add_file(name, progress)
    if json:
        print_json(result.to_json())
    else:
        print_data_check(result)
    if result.problem_kinds or not (result.pairs or result.completions):
        raise typer.Exit(2)


@app.command(cls=AppCommand)
@with_config_options(("max_length", *ENCODING_SETTINGS))
def show(
    flags: dict[str, Any],
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Number of the pair, from 1.")],
    file: File,
    model: Annotated[str, model_option("Folder or Hub id of the model; only its tokenizer is loaded.")],
    no_color: Annotated[bool, typer.Option("--no-color", help="Markers instead of colors.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print pair N as the model sees it: the prompt, the tokens that are trained, and the end of the turn.

    Examples:
      mlx-dpo data show 1 pairs.jsonl --model ./Qwen3-4B-4bit
      mlx-dpo data show 17 pairs.jsonl --model ./Qwen3-4B-4bit --json
    """
    from mlx_dpo.data.chat_encoding import ExampleEncoder

    config = TrainConfig.from_mapping(flags)
    pair, where = _read_pair(number, file, config.columns)
    tokenizer = load_tokenizer(model)
    encoded = ExampleEncoder.from_config(config, tokenizer)(pair, where)
    assert encoded is not None, "only overlong='drop' drops"
    from mlx_dpo.cli.tables.pair_view import example_json, print_example

    if json:
        print_json({"pair": number, "file": where.file, "line": where.line, **example_json(encoded, tokenizer)})
        return
    has_colors = stdout_console.color_system is not None and not stdout_console.no_color
    print_example(encoded, tokenizer, f"Pair {number}, {where}", colors=has_colors and not no_color)


@app.command(cls=AppCommand)
@with_config_options(COLUMN_SETTINGS)
def convert(
    flags: dict[str, Any],
    file: File,
    out: OutputFile,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
    json: JsonFlag = False,
) -> None:
    """Rewrite rows of any accepted format as one pair per line: prompt, chosen, rejected (tools, chat_template_kwargs).

    Examples:
      mlx-dpo data convert ultrafeedback.json pairs.jsonl
      gunzip -c hh.jsonl.gz | mlx-dpo data convert - pairs.jsonl.gz --skip-bad
    """
    from mlx_dpo.data.row_conversion import convert_rows
    from mlx_dpo.errors import UserError

    if json and out == "-":
        raise UserError("--json and the pairs would both be printed to stdout", hint="Name a file for the pairs.")
    with progress_bar(f"Reading {file}") as progress:
        columns = TrainConfig.from_mapping(flags).columns
        pairs, skipped = convert_rows(file, out, skip_bad=skip_bad, columns=columns, progress=progress)
    if json:
        print_json({"pairs": pairs, "skipped_rows": skipped, "out": out})
        return
    text = f"{pairs:,} pairs in {'stdout' if out == '-' else out}"
    text += f", {skipped:,} bad rows left out" if skipped else ""
    (print_message if out == "-" else print_text)(text)


def _files_to_check(name: str) -> list[str]:
    """The file of this name, or the train and valid files of a folder."""
    from mlx_dpo.data.files.hub_splits import VALIDATION_NAMES
    from mlx_dpo.data.files.local_files import expand_path
    from mlx_dpo.data.files.row_files import TRAIN_NAMES, find_in_folder
    from mlx_dpo.errors import UserError, Where

    try:
        if name == "-" or not expand_path(name).is_dir():
            return [name]
    except OSError:  # opening it will fail with the reason
        return [name]
    files = [file for names in (TRAIN_NAMES, VALIDATION_NAMES) if (file := find_in_folder(name, names))]
    if not files:
        raise UserError("there is no train.jsonl or valid.jsonl in this folder", where=Where(name))
    return files


def _read_pair(number: int, file: str, columns: dict[str, str]) -> tuple[Any, Any]:
    """Pair `number` of a file, not counting bad rows, and its location."""
    from mlx_dpo.data.column_mapping import with_renamed_columns
    from mlx_dpo.data.row_parsing import parse_examples
    from mlx_dpo.data.row_reading import read_rows
    from mlx_dpo.errors import RowError, UserError, Where

    count = 0
    bad: list[RowError] = []
    for row in read_rows(file, bad.append, parse=with_renamed_columns(columns, parse_examples)):
        if number <= count + len(row.examples):
            if bad:
                print_message(f"bad rows before it, not counted: {len(bad):,}")
            return row.examples[number - count - 1], row.where
        count += len(row.examples)
    if not count and bad:
        raise bad[0]
    raise UserError(f"there is no pair {number:,}: it holds {count:,}", where=Where(file))


app.command(cls=AppCommand)(fix)
