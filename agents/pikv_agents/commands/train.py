"""`pikv train`: learn a policy on recorded traces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pikv_agents.commands.base import Command
from pikv_agents.commands.options import EnvironmentOptions


@dataclass(frozen=True, kw_only=True)
class Train(Command, EnvironmentOptions):
    """Train a policy; the best checkpoint on validation workloads is kept, the start included.

    Ctrl-C leaves usable checkpoints. `pikv export` turns the run into a bundle.
    """

    out: Path
    """Folder of the run."""
    preset: str = "default"
    """quick (about two minutes of a core) or default."""
    families: tuple[str, ...] = ()
    """Training families: names, files of your own (.toml, .json) or trace:FILE.jsonl; by default the suite's."""
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

        library, spec = open_library(self.library), self.spec()
        families = playable(self.families, library, spec.families["train"])
        changes = {"learner": self.learner, "steps": self.steps, "start": self.start, "seed": self.seed}
        config = preset(self.preset, families, **{k: v for k, v in changes.items() if v is not None})
        # The suite says on which machine what is served, the preset for how long and under which pressures.
        env = late(replace(config.env, control=self.control, **spec.environment()), self.control_latency_s)
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
