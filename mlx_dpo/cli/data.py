"""mlx-dpo data check, show, convert"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.config_options import with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.config import COLUMN_KNOBS, TrainConfig

if TYPE_CHECKING:
    from mlx_dpo.data.data_check import DataCheck

app = typer.Typer(
    help="Look at preference pairs before training on them: check, show, convert.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

File = Annotated[str, typer.Argument(metavar="FILE", help="A .jsonl, .json or .jsonl.gz file, or - for stdin.")]
Model = Annotated[str, typer.Option(help="Folder or Hub id of the model; only its tokenizer is loaded.")]
MaybeModel = Annotated[
    str | None,
    typer.Option(help="Folder or Hub id of a model, to measure in its tokens; only its tokenizer is loaded."),
]
MaxLength = Annotated[int, typer.Option(min=2, help="Longest prompt + completion in tokens, as in training.")]
Raw = Annotated[bool, typer.Option("--raw", help="Take string rows as they are, without the chat template.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
@with_config_options(COLUMN_KNOBS)
def check(
    flags: dict[str, Any],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A .jsonl, .json or .jsonl.gz file, a folder of them, or -.")
    ],
    model: MaybeModel = None,
    max_length: MaxLength = 2048,
    raw: Raw = False,
    json: Json = False,
) -> None:
    """Check every row and tell what is there: shapes, problems, repetitions and, with --model, lengths in tokens.

    Of a folder, its train and valid files are read. Exit code 2 if there is any problem, 0 if there is none.

    [bold]Examples[/]

      mlx-dpo data check pairs.jsonl

      mlx-dpo data check ./data --model ./Qwen3-4B-4bit --max-length 1024
    """
    from mlx_dpo.data.data_check import DataCheck

    files = _files(file)
    columns = TrainConfig.from_mapping(flags).columns
    survey = DataCheck(_tokenizer(model) if model else None, max_length=max_length, raw=raw, columns=columns)
    for name in files:
        with _progress(f"Reading {name}") as progress:
            survey.add_file(name, progress)
    if json:
        print_json(survey.to_json())
    else:
        _print_survey(survey)
    if survey.problem_kinds or not (survey.pairs or survey.completions):
        raise typer.Exit(2)


@app.command()
@with_config_options(COLUMN_KNOBS)
def show(
    flags: dict[str, Any],
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Which pair, counted from 1.")],
    file: File,
    model: Model,
    max_length: MaxLength = 2048,
    raw: Raw = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Markers instead of colours.")] = False,
    json: Json = False,
) -> None:
    """Print pair N as the model sees it: the prompt, the tokens that are trained, and the end of the turn.

    [bold]Examples[/]

      mlx-dpo data show 1 pairs.jsonl --model ./Qwen3-4B-4bit

      mlx-dpo data show 17 pairs.jsonl --model ./Qwen3-4B-4bit --json
    """
    from mlx_dpo.data.chat_encoding import ExampleEncoder

    pair, where = _pair(number, file, TrainConfig.from_mapping(flags).columns)
    tokenizer = _tokenizer(model)
    encoded = ExampleEncoder(tokenizer, max_length=max_length, overlong="truncate", raw=raw)(pair, where)
    assert encoded is not None, "only overlong='drop' drops"
    from mlx_dpo.cli.tables.pair_view import example_json, print_example

    if json:
        print_json({"pair": number, "file": where.file, "line": where.line, **example_json(encoded, tokenizer)})
    else:
        print_example(encoded, tokenizer, f"Pair {number}, {where}", colours=not no_color and _has_colours())


@app.command()
@with_config_options(COLUMN_KNOBS)
def convert(
    flags: dict[str, Any],
    file: File,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new file, packed if it ends in .gz; - for stdout.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
    json: Json = False,
) -> None:
    """Rewrite rows of any accepted shape as one pair a line: prompt, chosen, rejected (tools, chat_template_kwargs).

    [bold]Examples[/]

      mlx-dpo data convert ultrafeedback.json pairs.jsonl

      gunzip -c hh.jsonl.gz | mlx-dpo data convert - pairs.jsonl.gz --skip-bad
    """
    from mlx_dpo.data.row_conversion import convert_rows as run
    from mlx_dpo.errors import UserError

    if json and out == "-":
        raise UserError("--json prints on stdout, where the pairs go", hint="Name a file for the pairs.")
    with _progress(f"Reading {file}") as progress:
        columns = TrainConfig.from_mapping(flags).columns
        pairs, skipped = run(file, out, skip_bad=skip_bad, columns=columns, progress=progress)
    if json:
        print_json({"pairs": pairs, "skipped_rows": skipped, "out": out})
    else:
        console, place = (stderr_console, "stdout") if out == "-" else (stdout_console, out)
        left_out = f", {skipped:,} bad rows left out" if skipped else ""
        console.print(f"{pairs:,} pairs in {place}{left_out}", markup=False, soft_wrap=True)


def _files(name: str) -> list[str]:
    """The files to check: the one given, or a folder's train and valid files."""
    from mlx_dpo.data.example_sources import TRAIN_NAMES, VALID_NAMES, find_in_folder
    from mlx_dpo.data.row_files import expand_path
    from mlx_dpo.errors import UserError, Where

    try:
        if name == "-" or not expand_path(name).is_dir():
            return [name]
    except OSError:  # the opening of it will say why
        return [name]
    found = [file for names in (TRAIN_NAMES, VALID_NAMES) if (file := find_in_folder(name, names))]
    if not found:
        raise UserError("there is no train.jsonl or valid.jsonl in this folder", where=Where(name))
    return found


def _tokenizer(model: str) -> Any:
    from mlx_dpo.forward.model_loading import load_tokenizer

    return load_tokenizer(model)


def _pair(number: int, file: str, columns: dict[str, str]) -> tuple[Any, Any]:
    """Pair `number` of a file, rows with problems not counted, and its place."""
    from mlx_dpo.data.column_mapping import with_renamed_columns
    from mlx_dpo.data.example_sources import read_rows
    from mlx_dpo.data.row_formats import parse_examples
    from mlx_dpo.errors import RowError, UserError, Where

    seen = 0
    bad: list[RowError] = []
    for row in read_rows(file, bad.append, parse=with_renamed_columns(columns, parse_examples)):
        if number <= seen + len(row.examples):
            if bad:
                stderr_console.print(f"bad rows before it, not counted: {len(bad):,}", markup=False)
            return row.examples[number - seen - 1], row.where
        seen += len(row.examples)
    if not seen and bad:
        raise bad[0]
    raise UserError(f"there is no pair {number:,}: it holds {seen:,}", where=Where(file))


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, where that is a terminal."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=stderr_console, transient=True, disable=not stderr_console.is_terminal) as bar:
        task = bar.add_task(escape(label), total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _has_colours() -> bool:
    return stdout_console.color_system is not None and not stdout_console.no_color


def _print_survey(survey: DataCheck) -> None:
    from rich.text import Text

    from mlx_dpo.cli.tables.data_check_tables import data_check_report

    for part in data_check_report(survey):
        stdout_console.print(part, soft_wrap=isinstance(part, Text))
