"""`pikv fit-reuse`: fit the learned block rule `lrb`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command

WINDOWS_S = (60.0, 300.0, 900.0)


@dataclass(frozen=True, kw_only=True)
class FitReuse(Command):
    """Fits when cached blocks are used again, on training families, and says how well it tells validation ones.

    The file is used as `lazy/h2o+lrb:weights=FILE`; `lrb` alone takes the one that comes with the package.
    """

    out: Path = Path("reuse.safetensors")
    """Where the network goes."""
    library: Path | None = None
    """Trace library; by default the built-in one."""
    train: tuple[str, ...] = ()
    """Families to learn from; by default all of the training split that the traces can play."""
    validate: tuple[str, ...] = ()
    """Families to report on; by default all of the validation split. Test families are refused in `train`."""
    seeds: int = 2
    """Workloads of every training family."""
    pressure: float = 0.5
    """Working set over the cap while blocks are looked at: little, so that old ones are there to be seen."""
    horizon_s: float = 1800.0
    """Arrival horizon, model seconds."""
    profile: str = "cpu-gloo"
    """Machine whose prices count."""

    def run(self) -> dict[str, Any]:
        """Fit, print, write."""
        from pikv_agents.commands.options import at_least_one, open_library, origin, playable
        from pikv_agents.reuse_fit import ReuseConfig, collect, fit, ranking
        from pikv_agents.rollout import Suite
        from pikv_env.config import EnvConfig
        from pikv_env.workloads.families import FAMILIES
        from pikv_runtime.block_rules.network import save_network

        at_least_one(seeds=self.seeds)
        library = open_library(self.library)
        splits = {split: [f for f in FAMILIES if FAMILIES[f].split == split] for split in ("train", "validation")}
        train = playable(self.train, library, splits["train"])
        for name in train:
            if FAMILIES[name].split != "train":
                raise ValueError(f"train={name!r}: a {FAMILIES[name].split} family; only training families teach")
        config = ReuseConfig(pressure=self.pressure)
        suite = Suite(library, replace(EnvConfig(), profile=self.profile, horizon_s=self.horizon_s))
        interval_s = suite.config.runtime.interval_s
        samples = collect(suite, train, range(self.seeds), config)
        network = fit(samples, interval_s, config)
        save_network(network, self.out, {"families": ",".join(train), "samples": str(len(samples.gaps_s))})
        rows = []
        for family in playable(self.validate, library, splits["validation"]):
            for row in ranking(network, collect(suite, (family,), (0,), config), WINDOWS_S):
                rows.append({"family": family, **row})
                print(
                    f"{family:<20}within {row['window_s']:>5.0f} s  reused {row['reused']:.2f}  AUC {row['auc']:.3f}  "
                    f"recency {row['auc_recency']:.3f}  uses {row['auc_uses']:.3f}"
                )
        print(f"{len(samples.gaps_s)} samples of {len(train)} families; {self.out}")
        return {"train": list(train), "samples": len(samples.gaps_s), "rows": rows, "meta": origin()}
