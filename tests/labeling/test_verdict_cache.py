"""Verdicts on disk: found again, by key, whatever happens to the file."""

from __future__ import annotations

import random

import pytest

from mlx_dpo.judges.judge import Answer, Comparison
from mlx_dpo.labeling.verdict_cache import VerdictCache, list_verdict_caches, verdict_key

VALUES = {bytes([i]) * 16: None if i % 5 == 0 else i / 7 for i in range(20)}


def test_what_is_added_is_read_again() -> None:
    VerdictCache("again", "a judge").add(VALUES)
    VerdictCache("again", "a judge").add({b"x" * 16: 1.0})
    assert VerdictCache("again", "a judge").values == {**VALUES, b"x" * 16: 1.0}
    assert VerdictCache("other", "a judge").values == {}
    (file,) = [file for file in list_verdict_caches() if file.path == VerdictCache("again", "").path]
    assert (file.judge, file.verdicts) == ("a judge", 21)


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_or_damaged_file_loses_its_end_only(seed: int) -> None:
    rng, cache = random.Random(seed), VerdictCache(f"torn {seed}", "a judge")
    cache.add(VALUES)
    assert cache.path
    content = bytearray(cache.path.read_bytes())
    at = rng.randrange(len(content))
    if seed % 2:
        content[at] ^= 1 + rng.randrange(255)
    else:
        del content[at:]
    cache.path.write_bytes(content)
    again = VerdictCache(f"torn {seed}", "a judge")
    assert again.values.items() <= VALUES.items()
    again.add(VALUES)
    assert VerdictCache(f"torn {seed}", "a judge").values == VALUES


def test_keys_tell_requests_apart() -> None:
    turns = [{"role": "user", "content": "p"}]
    requests = [Answer("p", "a"), Answer("q", "a"), Answer(turns, "a"), Comparison("p", "a", "b")]
    requests += [Comparison("p", "b", "a"), Comparison("p", "a", ""), Answer("p", "")]
    assert len({verdict_key(request) for request in requests}) == len(requests)
    assert verdict_key(Answer([dict(turns[0])], "a")) == verdict_key(Answer(turns, "a"))


def test_a_folder_that_can_not_be_written_costs_the_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    cache = VerdictCache("nowhere", "a judge")
    cache.add(VALUES)
    assert cache.values == VALUES
