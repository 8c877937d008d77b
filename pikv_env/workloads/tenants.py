"""The sharing rule `tenant`: a prefix common to all requests of a tenant, then a question of the request's own."""

from __future__ import annotations

import numpy as np

from pikv_env.traces.hashing import mix, to_uniform
from pikv_env.workloads.draw import Drawn, Episode, Floats, Ints, Rng, Words, zipf_ranks


class TenantPrefix:
    """Requests of Zipf-distributed tenants; the text is notional, see `sharing.py`."""

    def probe(self, episode: Episode) -> Ints:
        """Library rows as the episode would draw them."""
        return _asked(episode, episode.rng(3), episode.probe_times())[0]

    def draw(self, episode: Episode, rate_per_s: float) -> Drawn:
        """The requests of the episode."""
        times = episode.single_arrivals(rate_per_s)
        rows, prefix, salts = _asked(episode, episode.rng(2), times)
        owner = episode.requests(len(times))
        return Drawn(times, rows, owner, episode.notional_ids((prefix, salts), own=owner))


def prefixes(episode: Episode, tenant: Ints) -> tuple[Ints, Words]:
    """Length in blocks and salt of each tenant's prefix; both of the shape of `tenant`."""
    low, high = episode.family.tenants.prefix_tokens
    place = to_uniform(mix(episode.key, 12, tenant))
    tokens = np.exp(np.log(max(low, 1)) + place * np.log((high + 1) / max(low, 1)))
    return (tokens // episode.library.page_tokens).astype(np.int64), mix(episode.key, 14, tenant)


def _asked(episode: Episode, rng: Rng, times: Floats) -> tuple[Ints, Ints, Words]:
    """Library row, prefix in blocks and its salt of each request; all (R,)."""
    library, tenants = episode.library, episode.family.tenants
    kind = episode.kinds_at(rng, times)
    tenant = zipf_ranks(rng, len(times), tenants.zipf, tenants.count)
    prefix, salts = prefixes(episode, tenant)
    rows, place = np.zeros(len(times), np.int64), rng.random(len(times))
    for k, name in enumerate(episode.family.kinds):
        own = library.rows_of(name)
        own = own[np.argsort(library.prompt_tokens[own], kind="stable")]
        sizes, mine = library.prompt_tokens[own], kind == k
        # Every prompt reaches beyond its prefix, so a prefix is at most what the longest prompt has room for.
        prefix[mine] = np.minimum(prefix[mine], sizes[-1] // library.page_tokens - 1)
        first = np.searchsorted(sizes, (prefix[mine] + 1) * library.page_tokens)
        rows[mine] = own[first + (place[mine] * (len(own) - first)).astype(np.int64)]
    return rows, prefix, salts
