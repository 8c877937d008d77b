"""What is trained, how long and with which hyperparameters: one frozen dataclass, and presets of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pikv_agents.static_grid import LOAD_GRID, QUICK_GRID, STATIC_GRID
from pikv_env.config import EnvConfig
from pikv_runtime.registry import UnknownNameError


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(ranks=2))
    """Episodes: families, pressures, prices, control view."""
    learner: str = "ppo"
    """Name in `learners.LEARNERS`."""
    steps: int = 400_000
    """Control intervals, over all lanes."""
    num_envs: int = 32
    """Lanes."""
    rollout: int = 128
    """Intervals of each lane between two updates."""
    batch_size: int = 512
    """Minibatch."""
    epochs: int = 6
    """Passes over a rollout."""
    learning_rate: float = 5e-4
    """Of Adam; falls linearly to a tenth."""
    gae_lambda: float = 0.98
    """Bias and variance of the advantage."""
    clip: float = 0.2
    """PPO's clip range."""
    target_kl: float = 0.05
    """PPO leaves an update early once the policy has moved half as much again."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    half_life_s: float = 300.0
    """Model time after which a charge counts half: blocks come back after minutes."""
    levers: tuple[str, ...] = ("fan_out", "window", "cached_share", "cached_ratio", "compression_ratio.bias")
    """Actions of the coef view that are learned; the others stay where the start put them. Empty: all."""
    noise: float = 0.25
    """First standard deviation of exploration, in units of the action (whose range is -1 to 1)."""
    caution: float = 0.15
    """Factor on it where an action loses fidelity for good: ratios, eviction."""
    hold_s: float = 128.0
    """Model time for which exploration noise is held; 0: drawn anew at every interval. What a cache keeps pays off
    minutes later, so noise that changes every few seconds tells nothing about it."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (tanh), of policy and critic each."""
    start: str | None = None
    """Heuristic that the first policy imitates; None: the best of `start_grid` on the training workloads."""
    start_grid: tuple[str, ...] = (*STATIC_GRID, *LOAD_GRID)
    """Where the start is looked for."""
    evaluations: int = 20
    """Evaluations on validation workloads, evenly spread; the best checkpoint is kept by them."""
    validation: tuple[str, ...] = ()
    """Families of the evaluations; empty: those of the validation split that the library can play, else other
    workloads of the training families."""
    validation_seeds: tuple[int, ...] = (0, 1)
    """Their workloads."""
    validation_pressures: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Their pressures."""
    seed: int = 0
    """All that is drawn derives from it."""
    threads: int = 1
    """Threads that step the lanes; results do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs", "rollout", "batch_size", "epochs", "evaluations", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.half_life_s < 300:
            raise ValueError(f"half_life_s={self.half_life_s}: at least 300, or reuse lies beyond the horizon")
        if not self.validation_seeds or not self.validation_pressures:
            raise ValueError("validation needs at least one seed and one pressure")

    @property
    def gamma(self) -> float:
        """Discount of one control interval."""
        return float(0.5 ** (self.env.runtime.interval_s / self.half_life_s))


DEFAULT = TrainConfig()
QUICK = TrainConfig(
    env=EnvConfig(horizon_s=600.0, workloads=4, pressure=(1.0, 4.0), ranks=2),
    steps=120_000,
    num_envs=32,
    rollout=128,
    batch_size=2048,
    epochs=6,
    learning_rate=1.4e-3,
    noise=0.25,
    start_grid=(*QUICK_GRID, *LOAD_GRID),
    levers=("fan_out", "cached_share"),
    evaluations=4,
    validation_seeds=(0,),
    validation_pressures=(1.0, 2.0),
)
PRESETS: dict[str, TrainConfig] = {"quick": QUICK, "default": DEFAULT}


def preset(name: str, families: tuple[str, ...] | None = None, **changes: object) -> TrainConfig:
    """A preset by name, with other training families and fields if given.

    Raises:
        UnknownNameError: No such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, list(PRESETS))
    config = replace(PRESETS[name], **changes)  # type: ignore[arg-type]
    return config if families is None else replace(config, env=replace(config.env, families=families))
