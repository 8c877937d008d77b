"""`env.spec` as JSON and back: what `gymnasium.make` needs to build an environment with the same trajectories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from pikv_env.config import EnvConfig
from pikv_runtime.config import RuntimeConfig

_INSTEAD = {
    "library": "pass the path of its file",
    "pool": "leave it out: config and seed make an equal one",
    "model": "pass the path of its folder",
    "transport": "leave it out",
}


class JsonSpec(EnvSpec):
    """Gymnasium's `EnvSpec` for our arguments: configurations and paths become plain JSON, and come back as such."""

    def to_json(self) -> str:
        """See `EnvSpec.to_json`; raises ValueError naming the argument that JSON cannot hold, and what to pass."""
        plain = {name: _plain(value) for name, value in self.kwargs.items()}
        for name, value in plain.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                hint = _INSTEAD.get(name, "pass numbers, strings, lists or mappings")
                kind = type(self.kwargs[name]).__name__
                raise ValueError(f"{self.id}: argument {name!r} is a {kind}, which JSON cannot hold: {hint}") from None
        return EnvSpec.to_json(replace(self, kwargs=plain))


def _plain(value: Any) -> Any:
    if isinstance(value, EnvConfig | RuntimeConfig):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


class Specified:
    """An environment whose `spec` is a `JsonSpec`, whatever `gymnasium.make` assigns."""

    _spec: JsonSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How this environment was made; None if not by `gymnasium.make`."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        if value is None or isinstance(value, JsonSpec):
            self._spec = value
            return
        names = ("namespace", "name", "version")  # of the id
        fields = {name: v for name, v in vars(value).items() if name not in names}
        self._spec = JsonSpec(**fields)
