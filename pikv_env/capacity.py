"""What an environment's `load` is a share of, and how much of it a request takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pikv_env.config import EnvConfig
from pikv_env.folding import Folding
from pikv_runtime.ledger.state import Price
from pikv_runtime.profiles import load_profile


@dataclass(frozen=True)
class Capacity:
    """Prices of a machine and what its load is measured by."""

    prices: NDArray[np.float64]
    """By `Price`, seconds of one iteration's parts."""
    load_of: Literal["time", "slots"]
    slots: int
    ranks: int

    @classmethod
    def of(cls, config: EnvConfig, folding: Folding) -> Capacity:
        """Of the configured machine, serving the configured geometry as the traces stand for it."""
        profile, runtime = load_profile(config.profile), config.runtime
        prices = profile.prices(
            folding.geometry,
            ranks=config.ranks,
            page_tokens=runtime.page_tokens,
            rows=runtime.slots,
            chunk_tokens=runtime.max_batch_tokens,
        )
        by_profile: Literal["time", "slots"] = "time" if profile.hardware is None else "slots"
        return cls(folding.fold(prices), config.load_of or by_profile, runtime.slots, config.ranks)

    def service_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a request takes, seconds.

        Of time: its compute; a decode step is shared by four requests on average. Of slots: how long it is served with
        half of them occupied, over their number.
        """
        p = self.prices
        prefill = prompt_tokens * p[Price.PREFILL_TOKEN]
        if self.load_of == "time":
            return float(prefill + output_tokens * (p[Price.STEP] / 4 + p[Price.DECODE_TOKEN]))
        step = p[Price.STEP] + p[Price.DECODE_TOKEN] * max(1.0, self.slots / 2 / self.ranks)
        return float(prefill + output_tokens * step) / self.slots
