"""`RunLogger`: the same metrics to JSON lines always and to W&B when asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pikv_agents.tracking.metrics import METRICS_FILE, RUN_FILE, check_metrics, write_json

Mode = Literal["offline", "online", "disabled"]
MODES = ("offline", "online", "disabled")
# All that W&B stores goes below the run folder; without these, staged artifacts land in the home folder.
_FOLDERS = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")


class TrackingError(ValueError):
    """W&B was asked for and could not start."""


class RunLogger:
    """Logs one run. A context manager: W&B starts on entry and is finished on exit.

    `out_dir/metrics.jsonl` gets one line per `log` call in every mode. A folder that already holds metrics is
    refused, unless `existing` says to append to them or to replace them.
    """

    def __init__(
        self,
        out_dir: Path | str,
        mode: Mode = "offline",
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        project: str = "pikv",
        existing: Literal["refuse", "append", "replace"] = "refuse",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"tracking mode {mode!r}: allowed {', '.join(MODES)}")
        if existing not in ("refuse", "append", "replace"):
            raise ValueError(f"existing={existing!r}: allowed refuse, append, replace")
        self.out_dir = Path(out_dir).resolve()
        self.mode = mode
        self.name = name or self.out_dir.name
        self.group = group or self.name
        self.project = project
        self.tags = tuple(tags)
        self.config = dict(config or {})
        self._existing = existing
        self._saved_env: dict[str, str | None] = {}
        self._run: Any = None
        self._file: Any = None
        self._start = 0.0

    @property
    def metrics_path(self) -> Path:
        """The JSON lines file."""
        return self.out_dir / METRICS_FILE

    def __enter__(self) -> RunLogger:
        path = self.metrics_path
        if self._existing == "refuse" and path.exists() and path.stat().st_size:
            raise ValueError(f"{path} already holds a run: choose another folder, append or replace")
        write_json(self.out_dir / RUN_FILE, self._describe())
        self._start_wandb()
        self._file = path.open("a" if self._existing == "append" else "w", encoding="utf-8")
        self._start = time.monotonic()
        return self

    def _describe(self) -> dict[str, Any]:
        keys = ("name", "group", "project", "mode", "tags", "config")
        return {key: getattr(self, key) for key in keys}

    def _start_wandb(self) -> None:
        if self.mode == "disabled":
            return
        for key, value in dict.fromkeys(_FOLDERS, str(self.out_dir)).items() | {("WANDB_SILENT", "true")}:
            self._saved_env[key] = os.environ.get(key)
            os.environ[key] = value
        try:
            import wandb

            self._run = wandb.init(
                dir=str(self.out_dir),
                mode=self.mode,
                project=self.project,
                name=self.name,
                group=self.group,
                tags=list(self.tags),
                config=self.config,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            self._restore_env()
            raise TrackingError(
                f"W&B could not start in mode {self.mode!r} ({error}): allowed modes {', '.join(MODES)}; "
                "'disabled' keeps metrics.jsonl only"
            ) from error

    def _restore_env(self) -> None:
        for key, value in self._saved_env.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        self._saved_env.clear()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log `metrics` at `step`; a wrong name or a value not finite raises before anything is written."""
        if self._file is None:
            raise ValueError("the run is not open: log inside `with RunLogger(...)`")
        checked = check_metrics(metrics)
        row = {"step": int(step), "time_s": round(time.monotonic() - self._start, 3), "metrics": checked}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log({"step": int(step), **checked})

    def log_artifact(self, path: Path | str, name: str, type: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Attach a file or folder (a bundle, a report) to the run; `disabled` only checks that it exists."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"artifact {name!r}: no file or folder at {path}")
        if self._run is None:
            return
        import wandb

        artifact = wandb.Artifact(name, type, metadata=dict(metadata or {}))
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def sync_hint(self) -> str | None:
        """After an offline run: the command that uploads it; None in the other modes."""
        if self.mode != "offline" or self._run is None:
            return None
        return f"wandb sync {self._run.settings.sync_dir}"

    def close(self, exit_code: int = 0) -> None:
        """Finish W&B and close the file; a second call does nothing."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        try:
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
        finally:
            self._restore_env()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if kind is None else 1)
