"""Which files of a data set repository are which split, as its card says, and else as their names do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mlx_dpo.errors import UserError, Where

READABLE_SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_KNOWN_SUFFIXES = (*READABLE_SUFFIXES, ".csv", ".tsv", ".arrow", ".jsonl.zst", ".txt", ".zip", ".py")
_METADATA_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")
_SHARD = re.compile(r"(.+?)-\d{3,}-of-\d{3,}.*")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SPLIT_WORD = re.compile(rf"(?:^|[/_.\-])({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?=[/_.\-\d]|$)")
VALIDATION_SPLITS = ("validation", "valid", "val", "eval", "dev")
DEFAULT_CONFIG = "default"


@dataclass(frozen=True)
class DatasetSplit:
    """A split of a configuration and its files, in order."""

    config: str
    name: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.name if self.config == DEFAULT_CONFIG else f"{self.config}/{self.name}"


def find_splits(files: Sequence[str], card: Mapping[str, Any]) -> tuple[list[DatasetSplit], str | None]:
    """All splits of a repository, and its default configuration where it has one.

    Args:
        files: every file of the repository, by path.
        card: the YAML head of its README.md; `configs` in it is what `datasets` goes by.
    """
    configs = card.get("configs")
    named = [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
    splits = list(_splits_from_card(files, named)) if named else []
    default = next((str(c.get("config_name")) for c in named if c.get("default")), None)
    if not splits:
        splits = list(_splits_from_file_names(files))
    found = list(dict.fromkeys(split.config for split in splits))
    if default not in found:
        default = DEFAULT_CONFIG if DEFAULT_CONFIG in found else found[0] if len(found) == 1 else None
    return splits, default


def _splits_from_card(files: Sequence[str], configs: Iterable[Mapping[str, Any]]) -> Iterator[DatasetSplit]:
    for config in configs:
        name = str(config.get("config_name") or DEFAULT_CONFIG)
        folder = str(config.get("data_dir") or "").strip("/")
        inside = [file for file in files if not folder or file.startswith(f"{folder}/")]
        if config.get("data_files") is None:
            yield from (DatasetSplit(name, split.name, split.files) for split in _splits_from_file_names(inside))
            continue
        for split, patterns in _data_files(config["data_files"]):
            matching = [re.compile(_glob_to_regex(f"{folder}/{p}" if folder else p)) for p in patterns]
            found = tuple(file for file in files if any(one.fullmatch(file) for one in matching))
            if found:
                yield DatasetSplit(name, split, found)


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of `data_files` in any of its forms."""
    if isinstance(value, Mapping):
        yield from ((str(split), _texts(paths)) for split, paths in value.items())
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        yield from ((str(item.get("split") or "train"), _texts(item.get("path"))) for item in value)
    else:
        yield "train", _texts(value)


def _texts(value: Any) -> list[str]:
    return [
        item.removeprefix("./") for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)
    ]


def _glob_to_regex(pattern: str) -> str:
    """A pattern of file names as a regular expression: ** any folders, * and ? within one, [...] as in a shell."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(special.get(p, p.replace("[!", "[^") if p.startswith("[") else re.escape(p)) for p in parts)


def _splits_from_file_names(files: Iterable[str]) -> Iterator[DatasetSplit]:
    """train-00000-of-00002.parquet, harmless-base/train.jsonl.gz, default/train/0000.parquet and the like."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(files):
        *folders, name = file.split("/")
        if (
            not name.endswith(READABLE_SUFFIXES)
            or name in _METADATA_FILES
            or any(part.startswith(".") for part in file.split("/"))
        ):
            continue
        split, config = _split_from_name(name), [part for part in folders if part != "data"]
        if split is None:
            split = next((word for part in reversed(config) if (word := _split_word(part))), "train")
            config = [part for part in config if _split_word(part) != split]
        found.setdefault(("/".join(config) or DEFAULT_CONFIG, split), []).append(file)
    yield from (DatasetSplit(config, split, tuple(paths)) for (config, split), paths in found.items())


def _split_from_name(name: str) -> str | None:
    shard = _SHARD.fullmatch(name)
    return shard[1] if shard else _split_word(name)


def _split_word(text: str) -> str | None:
    match = _SPLIT_WORD.search(text)
    return _SPLIT_WORDS[match[1]] if match else None


def choose_split(
    splits: Sequence[DatasetSplit], default: str | None, part: str | None, files: Sequence[str], where: Where
) -> DatasetSplit:
    """The split that `part` names: `config/split`, `split`, `config`, or nothing, which is train. Raises `UserError`.

    A * in the configuration takes all that fit together.
    """
    if not splits:
        raise _nothing_to_read(files, where)
    if part is None and default is None:
        raise UserError("holds several sets; name one", where=where, hint=_names(splits, where))
    if part is not None and (found := _merge_splits(splits, *_config_and_split(part))):
        return found
    for config, split in ((default, part or "train"), (part, "train")):
        if config is not None and (found := _merge_splits(splits, config, split)):
            return found
    raise UserError(f"has no split `{part or 'train'}`", where=where, hint=_names(splits, where))


def _config_and_split(part: str) -> tuple[str, str]:
    config, _, split = part.rpartition("/")
    return config, split


def _merge_splits(splits: Sequence[DatasetSplit], config: str, name: str) -> DatasetSplit | None:
    files = [file for s in splits if s.name == name and fnmatchcase(s.config, config) for file in s.files]
    return DatasetSplit(config, name, tuple(files)) if files else None


def find_validation_split(splits: Sequence[DatasetSplit], config: str) -> str | None:
    """The name of a configuration's validation split, where it has one. A test split is left for testing."""
    names = {split.name for split in splits if split.config == config}
    return next((name for name in VALIDATION_SPLITS if name in names), None)


def _names(splits: Sequence[DatasetSplit], where: Where) -> str:
    listed = ", ".join(map(str, splits[:20])) + (", ..." if len(splits) > 20 else "")
    base = where.file.partition(":")[0]
    return f"It has: {listed}. Name one behind a colon: {base}:{splits[0]}"


def _nothing_to_read(files: Sequence[str], where: Where) -> UserError:
    endings = sorted(
        {ending for file in files for ending in _KNOWN_SUFFIXES if file.endswith(ending)} - set(READABLE_SUFFIXES)
    )
    has = f", but {', '.join(endings)}" if endings else ""
    hint = f"The Hub often keeps a copy in parquet: {where.file.partition('@')[0]}@refs/convert/parquet"
    return UserError(
        f"has no files of a kind that is read ({', '.join(READABLE_SUFFIXES[:3])}){has}", where=where, hint=hint
    )
