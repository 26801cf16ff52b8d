"""A cache of limited size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """The values used last, as many as fit into a total cost. Safe to use from several threads."""

    def __init__(self, max_cost: int) -> None:
        self.max_cost, self.cost = max_cost, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value of a key, or None where it is not in the cache."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: K, value: V, cost: int) -> None:
        """Add a value, and evict the least recently used ones until the total cost fits.

        Args:
            key: of the value; an earlier value is replaced.
            value: to store.
            cost: in the unit of the cache's limit.
        """
        with self._lock:
            if key in self._entries:
                self.cost -= self._entries.pop(key)[1]
            self._entries[key] = value, cost
            self.cost += cost
            while self.cost > self.max_cost:
                self.cost -= self._entries.popitem(last=False)[1][1]
