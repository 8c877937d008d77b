"""`pikv calibrate`: measure this machine's profile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Calibrate(Command, ModelOptions):
    """Measure what this machine charges for a model: the prices of the model clock, as a profile.

    Serves small workloads on one core for about a minute and fits the prices to the iterations' times. Use the
    profile as `profile=FILE` in environments and commands.
    """

    out: Path = Path("profile.json")
    """Where the profile goes; its name is the file's."""
    quick: bool = False
    """A rougher measurement in less than half the time."""

    def run(self) -> dict[str, Any]:
        """Measure, print the prices, write and return the profile."""
        from tqdm import tqdm

        from pikv_agents.report import tables
        from pikv_env.calibrate import calibrate, check_path, save_profile

        check_path(self.out)
        with tqdm(desc="calibrating", unit="phase", leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            profile = calibrate(
                self.model, name=self.out.stem, quick=self.quick, on_phase=show, device=self.device, dtype=self.dtype
            )
        save_profile(profile, self.out)
        console = tables.console()
        console.print(price_table(profile.prices_s))
        console.print(f"median error of an iteration's time, on iterations not fitted: {profile.fit_error:.1%}")
        console.print(f"{profile.source}\nprofile: {self.out}", soft_wrap=True)
        return asdict(profile)


def price_table(prices_s: dict[str, float]) -> Any:
    """Prices in microseconds per unit, as a rich table."""
    from pikv_agents.report.tables import plain_table
    from pikv_env.calibrate import UNITS
    from pikv_runtime.ledger.state import Price

    table = plain_table("Prices", ("price", "per"), ("value", "unit"))
    for price, unit in UNITS.items():
        value = prices_s[price.name.lower()]
        shown = (f"{value:.0f}", "bytes") if price is Price.QUERY_BYTES else (f"{value * 1e6:.4g}", "µs")
        table.add_row(price.name.lower(), unit, *shown)
    return table
