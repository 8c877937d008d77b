"""Block rules as their papers say them, over plain lists: slow, obvious, and nothing of the ledger's.

A cache holds whole blocks, named by hash. One request is served at a time: of the leading blocks that are there, none
may go while it runs. Blocks are given up until its fresh ones fit; then it is admitted, the hits are told, and at its
end its full blocks come in, both deepest block first.
"""

from __future__ import annotations


class Cache:
    """FIFO: a list from newest to oldest. The other rules change parts of it."""

    def __init__(self):
        self.first, self.second, self.seen, self.ghosts, self.others = [], [], {}, [], []
        self.used = frozenset()

    def __contains__(self, name):
        return name in self.first or name in self.second

    def size(self):
        return len(self.first) + len(self.second)

    def hit(self, name):
        self.seen[name] = min(3, self.seen[name] + 1)

    def insert(self, name):
        self.seen[name] = 0
        self.first.insert(0, name)

    def free(self, names):
        """Those of a list that may go, oldest first."""
        return [name for name in reversed(names) if name not in self.used]

    def evict(self):
        self.first.remove(self.free(self.first)[0])


class TwoQueue(Cache):
    def hit(self, name):
        if name in self.second:
            self.second.remove(name)
            self.second.insert(0, name)

    def insert(self, name):
        back = name in self.ghosts
        if back:
            self.ghosts.remove(name)
        (self.second if back else self.first).insert(0, name)

    def evict(self):
        size = self.size()
        order = (self.first, self.second) if len(self.first) > 0.25 * size else (self.second, self.first)
        queue = next(q for q in order if self.free(q))
        name = self.free(queue)[0]
        queue.remove(name)
        if queue is self.first:
            self.ghosts = [name, *self.ghosts][: int(0.5 * size)]


class S3FIFO(Cache):
    def insert(self, name):
        self.seen[name] = 0
        back = name in self.ghosts
        if back:
            self.ghosts.remove(name)
        (self.second if back else self.first).insert(0, name)

    def evict(self):
        size = self.size()
        small_first = len(self.first) >= 0.1 * size
        if not ((small_first and self._small(size)) or self._main()):
            assert self._small(size)

    def _small(self, size):
        for name in self.free(self.first):
            self.first.remove(name)
            if self.seen[name] <= 1:
                self.ghosts = [name, *self.ghosts][: int(0.9 * size)]
                return True
            self.seen[name] = 0
            self.second.insert(0, name)
        return False

    def _main(self):
        while self.free(self.second):
            for name in self.free(self.second):
                self.second.remove(name)
                if self.seen[name] == 0:
                    return True
                self.seen[name] -= 1
                self.second.insert(0, name)
        return False


class Sieve(Cache):
    """The hand is the name that it points at, or None: start at the tail."""

    hand = None

    def evict(self):
        while True:
            at = self.first.index(self.hand) if self.hand is not None else len(self.first) - 1
            name = self.first[at]
            ahead = self.first[at - 1] if at > 0 else None
            if name in self.used or self.seen[name] > 0:
                if name not in self.used:
                    self.seen[name] = 0
                self.hand = ahead
                continue
            self.first.remove(name)
            self.hand = ahead
            return


class ARC(Cache):
    target = 0.0

    def hit(self, name):
        (self.first if name in self.first else self.second).remove(name)
        self.second.insert(0, name)

    def insert(self, name):
        if name in self.ghosts:
            step = max(1.0, len(self.others) / len(self.ghosts))
            self.target = min(float(self.size()), self.target + step)
            self.ghosts.remove(name)
            self.second.insert(0, name)
        elif name in self.others:
            step = max(1.0, len(self.ghosts) / len(self.others))
            self.target = max(0.0, self.target - step)
            self.others.remove(name)
            self.second.insert(0, name)
        else:
            self.first.insert(0, name)

    def evict(self):
        c = self.size()
        order = (self.first, self.second) if len(self.first) > self.target else (self.second, self.first)
        queue = next(q for q in order if self.free(q))
        name = self.free(queue)[0]
        queue.remove(name)
        if queue is self.first:
            self.ghosts.insert(0, name)
        else:
            self.others.insert(0, name)
        del self.ghosts[max(0, c - len(self.first)) :]
        del self.others[max(0, 2 * c - self.size() - len(self.ghosts)) :]


class LRU(Cache):
    """Names from youngest to oldest use; `serve` tells hits and newcomers in the order of their uses."""

    def hit(self, name):
        self.first.remove(name)
        self.first.insert(0, name)


REFERENCES = {"fifo": Cache, "two_queue": TwoQueue, "s3fifo": S3FIFO, "sieve": Sieve, "arc": ARC}


def serve(cache, names, full, lookup, need, capacity):
    """Serve one request of blocks `names`, of which the first `full` are full and `lookup` may be hit; `need(hits)`
    blocks must fit under `capacity` beside those. Returns the hits."""
    hits = 0
    while hits < lookup and names[hits] in cache:
        hits += 1
    cache.used = frozenset(names[:hits])
    while cache.size() + need(hits) > capacity:
        cache.evict()
    for name in reversed(names[:hits]):
        cache.hit(name)
    cache.used = frozenset()
    for name in reversed(names[hits:full]):
        if name not in cache:  # a prompt's last block is computed anew even where it is cached: the twin goes
            cache.insert(name)
    return hits


def next_use(requests, q, name, lookups):
    """Number of the next request after `q` that looks `name` up; infinite: none."""
    later = [k for k in range(q + 1, len(requests)) if name in requests[k][: lookups[k]]]
    return later[0] if later else float("inf")
