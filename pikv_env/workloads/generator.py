"""From a family and a trace library to a stream of requests, bit for bit reproducible from the seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pikv_env.traces.hashing import mix, to_uniform
from pikv_env.traces.library import TraceLibrary
from pikv_env.workloads.draw import Episode, Floats, Ints
from pikv_env.workloads.families import FAMILIES, Family
from pikv_env.workloads.sharing import SHARING
from pikv_runtime.requests import Request, RequestList

ServiceTime = Callable[[int, int], float]


def make_workload(
    family: Family | str,
    library: TraceLibrary,
    seed: int,
    horizon_s: float,
    load: float,
    service_s: ServiceTime,
) -> RequestList:
    """Draw one episode of a family.

    Args:
        family: A family, or the name of one in `FAMILIES`.
        library: Recorded contents; must hold the family's kinds.
        seed: Same seed and arguments, same workload.
        horizon_s: Arrivals lie in [0, horizon_s), seconds of model time.
        load: Share of compute offered where nothing is reused: the rate is load over mean service time.
        service_s: Seconds of exclusive compute for (prompt_tokens, output_tokens).

    Returns:
        Requests ordered by arrival, numbered from 0, with token ids where the library has them and the family
        does not share notional text.
    """
    family = FAMILIES[family] if isinstance(family, str) else family
    if not load > 0:
        raise ValueError(f"load={load}: must be positive")
    missing = [kind for kind in family.kinds if kind not in library.families]
    if missing:
        raise ValueError(f"family {family.id!r} needs contents {missing}; the library has {list(library.families)}")
    episode, rule = Episode(family, library, seed, horizon_s), SHARING[family.sharing]
    service = _service_times(library, family.kinds, service_s)
    drawn = rule.draw(episode, load / float(service[rule.probe(episode)].mean()))
    classes = to_uniform(mix(episode.key, 4, drawn.owner)) < family.batch_share
    text = library.token_ids if family.recorded_text else None
    return RequestList(
        name=f"{family.id}-{seed}",
        horizon_s=horizon_s,
        requests=_requests(library, drawn.times, drawn.rows, classes, drawn.hash_ids, text),
        classes=family.classes,
        family=family.id,
        seed=seed,
    )


def _service_times(library: TraceLibrary, kinds: tuple[str, ...], service_s: ServiceTime) -> Floats:
    """Seconds of exclusive compute of each library row of some kinds, (C,)."""
    seconds = np.zeros(len(library))
    for row in np.concatenate([library.rows_of(kind) for kind in kinds]).tolist():
        seconds[row] = service_s(int(library.prompt_tokens[row]), int(library.output_tokens[row]))
        if not 0 < seconds[row] < np.inf:
            raise ValueError(f"service_s of content {row} is {seconds[row]}: must be positive and finite")
    return seconds


def _requests(
    library: TraceLibrary,
    times: Floats,
    rows: Ints,
    classes: NDArray[np.bool_],
    hash_ids: NDArray[np.int64],
    text: NDArray[np.int32] | None,
) -> tuple[Request, ...]:
    """The requests; token ids are read-only views of `text`, the library's tokens."""
    prompts, outputs, blocks = (
        a[rows].tolist() for a in (library.prompt_tokens, library.output_tokens, library.num_blocks)
    )
    hash_ids.flags.writeable = False
    requests = []
    for i, (time, row, one) in enumerate(zip(times.tolist(), rows.tolist(), classes.tolist(), strict=True)):
        prompt, end = prompts[i], prompts[i] + outputs[i]
        ids = None if text is None else text[row]
        requests.append(
            Request(
                request_id=i,
                arrival_s=time,
                prompt_tokens=prompt,
                output_tokens=outputs[i],
                hash_ids=hash_ids[i, : blocks[i]],
                class_id=int(one),
                content=row,
                prompt_ids=None if ids is None else ids[:prompt],
                exact_ids=None if ids is None else ids[prompt:end],
            )
        )
    return tuple(requests)
