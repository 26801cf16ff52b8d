"""A judge whose verdicts are cached, and whose calls are counted and limited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from mlx_dpo.judges.judge import Answer, Comparison, IndexedValues, Judge, verdicts_by_scores
from mlx_dpo.labeling.verdict_cache import VerdictCache, verdict_key

RequestT = TypeVar("RequestT", Answer, Comparison)


class BudgetSpent(Exception):
    """A judge would have to be asked for more than is left of the budget of calls."""


class CachedJudge(Judge):
    """Asks another judge only for what the cache does not have, and stores every verdict as it comes.

    Args:
        judge: the other judge.
        cache: of its verdicts.
        max_calls: budget of calls; None: no limit.

    Attributes:
        num_calls: comparisons and answers that the judge got.
        num_hits: those that the cache had.
    """

    def __init__(self, judge: Judge, cache: VerdictCache, max_calls: int | None = None) -> None:
        self.judge, self.cache, self.max_calls = judge, cache, max_calls
        self._on_verdict: Callable[[], None] = lambda: None
        self.name, self.order_sensitive, self.is_scalar = judge.name, judge.order_sensitive, judge.is_scalar
        self.num_calls = self.num_hits = 0
        self._session: ExitStack | None = None
        self._has_begun = False

    @property
    def calls_left(self) -> float:
        """What is left of the budget."""
        return math.inf if self.max_calls is None else self.max_calls - self.num_calls

    @property
    def identity(self) -> str | None:
        """That of the judge."""
        return self.judge.identity

    @contextmanager
    def session(self, on_verdict: Callable[[], None] = lambda: None) -> Iterator[None]:
        """That of the judge, which begins with the first call of it: nothing is loaded where the cache has all.

        Args:
            on_verdict: is called inside the context after every new verdict.
        """
        with ExitStack() as self._session:
            self._on_verdict = on_verdict
            try:
                yield
            finally:
                self._session, self._has_begun, self._on_verdict = None, False, lambda: None

    def num_new(self, requests: Sequence[Answer] | Sequence[Comparison]) -> int:
        """How many different ones of some requests the cache does not have."""
        return len({verdict_key(request) for request in requests} - self.cache.values.keys())

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The verdicts, from the cache where it has them. Raises `BudgetSpent` before the judge is asked."""
        if self.is_scalar:
            return verdicts_by_scores(self, comparisons)
        return self._lookup(comparisons, self.judge.iter_verdicts)

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """The scores, from the cache where it has them. Raises `BudgetSpent` before the judge is asked."""
        return self._lookup(answers, self.judge.iter_scores)

    def _lookup(
        self,
        requests: Sequence[RequestT],
        judge: Callable[[Sequence[RequestT]], Iterator[IndexedValues]],
    ) -> list[float | None]:
        keys = [verdict_key(request) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.cache.values}
        self.num_hits += len(set(keys)) - len(new)
        if len(new) > self.calls_left:
            raise BudgetSpent
        if new:
            self._begin_session()
            new_keys = list(new)
            for verdicts in judge(list(new.values())):
                self.cache.add({new_keys[i]: verdict for i, verdict in verdicts.items()})
                self.num_calls += len(verdicts)
                self._on_verdict()
        return [self.cache.values[key] for key in keys]

    def _begin_session(self) -> None:
        if self._session is not None and not self._has_begun:
            self._session.enter_context(self.judge.session())
            self._has_begun = True
