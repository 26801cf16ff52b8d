"""Which files are which split: layouts as they are on the Hub."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mlx_dpo.data.files.hub_splits import choose_split, find_splits, find_validation_split
from mlx_dpo.errors import UserError, Where

WHERE = Where("u/n@main:x")
README = "README.md"

SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]
BINARIZED = [
    *("data/train_prefs-00000-of-00001.parquet", "data/train_sft-00000-of-00001-6270ab1e.parquet"),
    *("data/test_prefs-00000-of-00001.parquet", "data/gen-00000-of-00001.parquet"),
]
HH = [f"{folder}/{split}.jsonl.gz" for folder in ("harmless-base", "helpful-base") for split in ("test", "train")]
CONVERTED = ["default/train/0000.parquet", "default/train/0001.parquet", "default/validation/0000.parquet"]
SHP = [f"{domain}/{split}.json" for domain in ("askbaking", "askcarguys") for split in ("train", "validation", "test")]
# files, card, part, the files that are meant
CASES: dict[str, tuple[list[str], str, str | None, list[str]]] = {
    "shards": (SHARDS, "", None, SHARDS[:2]),
    "shards, named": (SHARDS, "", "test", SHARDS[2:]),
    "shards, with the config": (SHARDS, "", "default/train", SHARDS[:2]),
    "odd split names": (BINARIZED, "", "train_prefs", BINARIZED[:1]),
    "a hash behind": (BINARIZED, "", "train_sft", BINARIZED[1:2]),
    "a folder": (HH, "", "helpful-base/train", ["helpful-base/train.jsonl.gz"]),
    "a folder, its train": (HH, "", "helpful-base", ["helpful-base/train.jsonl.gz"]),
    "all folders": (HH, "", "*/test", ["harmless-base/test.jsonl.gz", "helpful-base/test.jsonl.gz"]),
    "converted": (CONVERTED, "", None, CONVERTED[:2]),
    "converted, named": (CONVERTED, "", "validation", CONVERTED[2:]),
    "domains": (SHP, "", "askcarguys/validation", ["askcarguys/validation.json"]),
    "one file": (["prefs.jsonl"], "", None, ["prefs.jsonl"]),
    "a word within a word": (["training_set_for_testers.jsonl"], "", None, ["training_set_for_testers.jsonl"]),
    "nothing but info": ([*SHARDS, "dataset_infos.json", ".cache/train.json"], "", "train", SHARDS[:2]),
    "the card's": (
        ["a/x.jsonl", "a/y.jsonl", "b/z.jsonl"],
        "configs: [{config_name: one, data_files: [{split: train, path: 'a/*'}, {split: dev, path: b/z.jsonl}]}]",
        "one/dev",
        ["b/z.jsonl"],
    ),
    "the card's default": (
        ["a.jsonl", "b.jsonl"],
        "configs: [{config_name: a, data_files: a.jsonl}, {config_name: b, data_files: b.jsonl, default: true}]",
        None,
        ["b.jsonl"],
    ),
    "the card's by mapping": (
        ["p.json", "q.json"],
        "configs: [{data_files: {train: p.json, test: q.json}}]",
        "test",
        ["q.json"],
    ),
    "the card's folder": (
        HH,
        "configs: [{config_name: h, data_dir: helpful-base}]",
        "h",
        ["helpful-base/train.jsonl.gz"],
    ),
    "the card's depth": (
        ["x/a.jsonl", "x/y/b.jsonl", "c.jsonl"],
        "configs: [{config_name: deep, data_files: [{split: train, path: ['**/[ab].jsonl']}]}]",
        "deep",
        ["x/a.jsonl", "x/y/b.jsonl"],
    ),
    "one star is one folder": (
        ["x/a.jsonl", "x/y/b.jsonl"],
        "configs: [{data_files: [{split: train, path: 'x/*.jsonl'}]}]",
        None,
        ["x/a.jsonl"],
    ),
    "a card of nonsense": (SHARDS, "configs: {a: 3}", None, SHARDS[:2]),
    "a card of files that are not there": (SHARDS, "configs: [{data_files: no.jsonl}]", None, SHARDS[:2]),
}


@pytest.mark.parametrize("name", CASES)
def test_split(name: str) -> None:
    files, card, part, expected = CASES[name]
    splits, default = find_splits([README, *files], yaml.safe_load(card) or {})
    assert list(choose_split(splits, default, part, files, WHERE).files) == expected


@pytest.mark.parametrize(
    ("files", "part", "said"),
    [
        (BINARIZED, None, "has no split `train`(?s:.*)train_prefs(?s:.*)u/n@main:gen"),
        (HH, None, "several sets(?s:.*)harmless-base/test, harmless-base/train"),
        (HH, "train", "has no split `train`"),
        (SHARDS, "tset", "no split `tset`(?s:.*)It has: test, train"),
        (["a.txt", "b.arrow"], None, r"no files of a kind(?s:.*)but \.arrow, \.txt(?s:.*)u/n@refs/convert/parquet"),
        (["build.py"], None, r"\.py"),
        ([], None, "no files"),
    ],
)
def test_no_such_split(files: list[str], part: str | None, said: str) -> None:
    splits, default = find_splits([README, *files], {})
    with pytest.raises(UserError, match=said):
        choose_split(splits, default, part, files, WHERE)


def test_validation() -> None:
    def found(files: list[str], config: str = "default") -> Any:
        return find_validation_split(find_splits(files, {})[0], config)

    assert found(CONVERTED) == "validation" and found(SHP, "askbaking") == "validation"
    assert found(SHARDS) is None and found(HH, "helpful-base") is None  # a test split is for testing
