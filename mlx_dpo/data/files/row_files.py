"""What a user may name as data: files, folders, stdin, and Hub datasets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from mlx_dpo.data.files.hub_datasets import HubDataset, open_hub_rows, parse_hub_name
from mlx_dpo.data.files.hub_splits import TABLE_SUFFIXES, VALIDATION_NAMES
from mlx_dpo.data.files.local_files import RowStream, expand_path, open_local_rows, os_error_to_user_error
from mlx_dpo.errors import UserError, Where

TRAIN_NAMES = ("train",)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", *TABLE_SUFFIXES)


def open_rows(path: str) -> AbstractContextManager[RowStream]:
    """Open a file of rows, a Hub dataset, or stdin for `-`.

    Raises:
        UserError: it can't be read; also raised inside the context for errors while reading.
    """
    repo = parse_hub_name(path)
    return open_hub_rows(path, repo) if repo else open_local_rows(path)


def is_plain_jsonl(path: str) -> bool:
    """Whether a file is plain JSON lines on disk, so that its rows can be read by their offsets."""
    with open_rows(path) as rows:
        return rows.seekable


def find_data_files(data: str, valid_data: str | None) -> tuple[str, str | None]:
    """The file to train on, and the held-out one where there is one.

    In a folder these are train.jsonl and valid.jsonl (or validation, val, eval, dev), .jsonl before .jsonl.gz, .json,
    .json.gz, .parquet, .csv and .tsv.

    Args:
        data: what --data names.
        valid_data: what --valid-data names.

    Raises:
        UserError: there is no such file.
    """
    held_out = None
    if repo := parse_hub_name(data):
        held_out = HubDataset(data, repo).validation_name()
    elif _is_folder(data):
        held_out = find_in_folder(data, VALIDATION_NAMES)
        train = find_in_folder(data, TRAIN_NAMES)
        if train is None:
            hint = "The folder of --data holds train.jsonl and, for the held-out pairs, valid.jsonl."
            raise UserError("there is no train.jsonl in this folder", where=Where(data), hint=hint)
        data = train
    if valid_data is None:
        return data, held_out
    if valid_data == data == "-":
        raise UserError("only one of --data and --valid-data can come from stdin")
    return data, find_held_out_file(valid_data)


def find_held_out_file(valid_data: str) -> str:
    """The held-out file: `valid_data` itself, or valid.jsonl in that folder.

    Raises:
        UserError: it is a folder without one.
    """
    if parse_hub_name(valid_data) or not _is_folder(valid_data):
        return valid_data
    held_out = find_in_folder(valid_data, VALIDATION_NAMES)
    if held_out is None:
        raise UserError("there is no valid.jsonl in this folder", where=Where(valid_data))
    return held_out


def find_in_folder(folder: str, names: Sequence[str]) -> str | None:
    """The first file of rows in a folder that has one of these names, or None."""
    candidates = (expand_path(folder) / (name + suffix) for name in names for suffix in _SUFFIXES)
    return next((str(file) for file in candidates if file.is_file()), None)


def _is_folder(name: str) -> bool:
    """Whether it is a folder rather than a file. Raises `UserError` if it is neither."""
    path = expand_path(name)
    try:
        if name == "-" or path.exists():
            return name != "-" and path.is_dir()
    except OSError as error:
        raise os_error_to_user_error(error, name) from None
    raise os_error_to_user_error(FileNotFoundError(), name)
