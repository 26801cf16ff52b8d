"""Which files of a dataset repository make up which split: as its card says, else by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mlx_dpo.errors import UserError, Where

TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
READABLE_SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", *TABLE_SUFFIXES)
VALIDATION_NAMES = ("valid", "validation", "val", "eval", "dev")
DEFAULT_CONFIG = "default"
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
    **dict.fromkeys(("test", "testing", "evaluation"), "test"),
}
_SPLIT_WORD = re.compile(rf"(?:^|[/_.\-])({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?=[/_.\-\d]|$)")
_SHARD = re.compile(r"(.+?)-\d{3,}-of-\d{3,}.*")
_METADATA_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")
_UNREADABLE_SUFFIXES = (".arrow", ".jsonl.zst", ".txt", ".zip", ".py")


@dataclass(frozen=True)
class DatasetSplit:
    """A split of a dataset on the Hub.

    Attributes:
        config: the name of its configuration.
        name: the split's name.
        files: paths in the repository, in order.
    """

    config: str
    name: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.name if self.config == DEFAULT_CONFIG else f"{self.config}/{self.name}"


def find_splits(files: Sequence[str], card: Mapping[str, Any]) -> tuple[list[DatasetSplit], str | None]:
    """All splits of a repository, and its default configuration if it has one.

    Args:
        files: the path of every file in the repository.
        card: the YAML header of its README.md, whose `configs` the package `datasets` goes by too.
    """
    entries = card.get("configs")
    configs = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    splits = list(_splits_from_card(files, configs)) or list(_splits_from_file_names(files))
    default = next((str(config.get("config_name")) for config in configs if config.get("default")), None)
    names = list(dict.fromkeys(split.config for split in splits))
    if default not in names:
        default = DEFAULT_CONFIG if DEFAULT_CONFIG in names else names[0] if len(names) == 1 else None
    return splits, default


def choose_split(
    splits: Sequence[DatasetSplit], default: str | None, part: str | None, files: Sequence[str], where: Where
) -> DatasetSplit:
    """The split that was asked for.

    Args:
        splits: all splits of the repository.
        default: its default configuration.
        part: `config/split`, `split`, `config`, or None for train; a * in the configuration merges all that match.
        files: all files of the repository.
        where: the dataset's name.

    Raises:
        UserError: there is no such split, or none is readable, or several configurations and none is named.
    """
    if not splits:
        raise _nothing_readable(files, where)
    available = ", ".join(map(str, splits[:20])) + (", ..." if len(splits) > 20 else "")
    hint = f"It has: {available}. Name one after a colon: {where.file.partition(':')[0]}:{splits[0]}"
    if part is None and default is None:
        raise UserError("holds several sets; name one", where=where, hint=hint)
    requested = [(default, part or "train"), (part, "train")]
    if part is not None:
        config, _, name = part.rpartition("/")
        requested.insert(0, (config, name))
    for pattern, name in requested:
        if pattern is not None and (split := _merge_splits(splits, pattern, name)):
            return split
    raise UserError(f"has no split `{part or 'train'}`", where=where, hint=hint)


def find_validation_split(splits: Sequence[DatasetSplit], config: str) -> str | None:
    """The name of a configuration's validation split, if it has one; a test split is left for testing."""
    names = {split.name for split in splits if split.config == config}
    return next((name for name in VALIDATION_NAMES if name in names), None)


def _splits_from_card(files: Sequence[str], configs: Iterable[Mapping[str, Any]]) -> Iterator[DatasetSplit]:
    for config in configs:
        name = str(config.get("config_name") or DEFAULT_CONFIG)
        folder = str(config.get("data_dir") or "").strip("/")
        prefix = f"{folder}/" if folder else ""
        if config.get("data_files") is None:
            inside = [file for file in files if file.startswith(prefix)]
            yield from (DatasetSplit(name, split.name, split.files) for split in _splits_from_file_names(inside))
            continue
        for split_name, patterns in _data_files(config["data_files"]):
            globs = [re.compile(_glob_to_regex(prefix + pattern)) for pattern in patterns]
            matching = tuple(file for file in files if any(glob.fullmatch(file) for glob in globs))
            if matching:
                yield DatasetSplit(name, split_name, matching)


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of `data_files` in any of its forms."""
    if isinstance(value, Mapping):
        yield from ((str(split), _paths(paths)) for split, paths in value.items())
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        yield from ((str(item.get("split") or "train"), _paths(item.get("path"))) for item in value)
    else:
        yield "train", _paths(value)


def _paths(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [path.removeprefix("./") for path in values if isinstance(path, str)]


def _glob_to_regex(pattern: str) -> str:
    """A pattern of file names as a regular expression: ** any folders, * and ? within one, [...] as in a shell."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(p, p.replace("[!", "[^") if p.startswith("[") else re.escape(p)) for p in parts)


def _splits_from_file_names(files: Iterable[str]) -> Iterator[DatasetSplit]:
    """train-00000-of-00002.parquet, harmless-base/train.jsonl.gz, default/train/0000.parquet and the like."""
    splits: dict[tuple[str, str], list[str]] = {}
    files = sorted(files)
    if any(_is_of_rows(file) and not file.endswith(TABLE_SUFFIXES) for file in files):
        files = [file for file in files if not file.endswith(TABLE_SUFFIXES)]  # tables beside rows describe them
    for file in filter(_is_of_rows, files):
        *folders, name = file.split("/")
        shard, config = _SHARD.fullmatch(name), [folder for folder in folders if folder != "data"]
        split = shard[1] if shard else _split_word(name)
        if split is None:
            split = next((word for folder in reversed(config) if (word := _split_word(folder))), "train")
            config = [folder for folder in config if _split_word(folder) != split]
        splits.setdefault(("/".join(config) or DEFAULT_CONFIG, split), []).append(file)
    yield from (DatasetSplit(config, split, tuple(paths)) for (config, split), paths in splits.items())


def _is_of_rows(file: str) -> bool:
    """Whether a file of a repository may hold rows, by its name."""
    *folders, name = file.split("/")
    is_hidden = any(part.startswith(".") for part in (*folders, name))
    return not is_hidden and name not in _METADATA_FILES and name.endswith(READABLE_SUFFIXES)


def _split_word(text: str) -> str | None:
    match = _SPLIT_WORD.search(text)
    return _SPLIT_WORDS[match[1]] if match else None


def _merge_splits(splits: Sequence[DatasetSplit], config: str, name: str) -> DatasetSplit | None:
    files = [file for s in splits if s.name == name and fnmatchcase(s.config, config) for file in s.files]
    return DatasetSplit(config, name, tuple(files)) if files else None


def _nothing_readable(files: Sequence[str], where: Where) -> UserError:
    present = [suffix for suffix in sorted(_UNREADABLE_SUFFIXES) if any(file.endswith(suffix) for file in files)]
    message = f"has no files of a kind that is read ({', '.join(READABLE_SUFFIXES[:3])})"
    hint = f"The Hub often keeps a copy in parquet: {where.file.partition('@')[0]}@refs/convert/parquet"
    return UserError(f"{message}{', but ' if present else ''}{', '.join(present)}", where=where, hint=hint)
