"""`pikv train`: learn a policy on recorded traces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pikv_agents.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a policy; the best checkpoint on validation workloads is kept, the start included.

    Ctrl-C leaves usable checkpoints. `pikv export` turns the run into a bundle.
    """

    out: Path
    """Folder of the run."""
    preset: str = "default"
    """quick (about two minutes of a core) or default."""
    library: Path | None = None
    """Trace library; by default the built-in one."""
    families: tuple[str, ...] = ()
    """Training families; by default those of the training split that the traces can play."""
    learner: str | None = None
    """ppo, a2c or sac."""
    steps: int | None = None
    """Control intervals, over all lanes."""
    seed: int = 0
    """All that is drawn derives from it."""
    start: str | None = None
    """Static setting to start from; by default the best of a small grid on the training workloads."""
    control: Literal["coef", "box", "discrete"] = "coef"
    """Control view."""
    profile: str = "cpu-gloo"
    """Machine whose prices count."""
    geometry: str = "embedded"
    """Model that is priced."""
    token_scale: int = 1
    """Tokens of that model that one recorded token stands for."""
    ranks: int = 2
    """Ranks that pages are sharded over."""
    host: float = 0.0
    """Host memory for evicted blocks, over the cap on the device; 0: none."""
    control_latency_s: float = 0.0
    """Model time from a decision until its control comes into force."""
    track: Literal["offline", "online", "disabled"] = "offline"
    """W&B; metrics.jsonl is written in any case."""
    group: str | None = None
    """Name of a group of runs that differ by seed."""
    replace: bool = False
    """Replace a run that is in the folder."""
    threads: int = 0
    """Threads; 0: one for each core."""

    def run(self) -> dict[str, Any]:
        """Train, say what came of it."""
        from pikv_agents.commands.options import command_line, default_threads, late, open_library, playable
        from pikv_agents.presets import preset
        from pikv_agents.report import tables
        from pikv_agents.training import train

        library = open_library(self.library)
        families = playable(self.families, library, "train")
        changes = {"learner": self.learner, "steps": self.steps, "start": self.start, "seed": self.seed}
        config = preset(self.preset, families, **{k: v for k, v in changes.items() if v is not None})
        env = replace(
            config.env, control=self.control, profile=self.profile, geometry=self.geometry, ranks=self.ranks,
            token_scale=self.token_scale, host=self.host,
        )  # fmt: skip
        env = late(env, self.control_latency_s)
        config = replace(config, env=env, threads=self.threads or default_threads())
        result = train(
            config,
            library,
            self.out,
            tracking=self.track,
            existing="replace" if self.replace else "refuse",
            group=self.group,
            command=command_line(),
        )
        console = tables.console()
        console.print(result.sentence())
        console.print(
            f"run: {result.run_dir}  next: pikv export --run-dir {result.run_dir} --out BUNDLE", soft_wrap=True
        )
        return result.to_dict()
