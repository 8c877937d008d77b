"""What an environment's `render` returns: nothing, an image or text, by its render mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pikv_env.rendering.film import Film
from pikv_env.rendering.frame import draw
from pikv_env.rendering.glyphs import Image
from pikv_env.rendering.text import draw_text
from pikv_runtime.ledger import Ledger
from pikv_runtime.registry import UnknownNameError

RENDER_METADATA = {"render_modes": ["rgb_array", "ansi"], "render_fps": 10}
"""What environments say of themselves to Gymnasium."""


class Screen:
    """Films an episode if there is a render mode, and costs nothing if there is none."""

    def __init__(self, render_mode: str | None) -> None:
        modes = RENDER_METADATA["render_modes"]
        assert isinstance(modes, list)
        if render_mode is not None and render_mode not in modes:
            raise UnknownNameError("render mode", render_mode, modes)
        self.mode = render_mode
        self.film = Film()

    def restart(self, env_id: str, episode: dict[str, Any], end_s: float, s: Ledger, lane: int = 0) -> None:
        """Begin to film the episode that `episode` (the info of `reset`) describes, in a ledger's lane."""
        if self.mode is not None:
            asked, reached = episode["pressure"], episode["pressure_reached"]
            # The largest request must fit, so a cap may be larger than the pressure asks for.
            short = f" (asked {asked:.3g})" if reached < 0.99 * asked else ""
            self.film.restart(f"{env_id}   {episode['family']}   pressure {reached:.3g}{short}", end_s)
            self.film.add(s, lane)

    def add(self, s: Ledger, lane: int, objective: Callable[[], float]) -> None:
        """Film the interval just ended."""
        if self.mode is not None:
            self.film.add(s, lane, objective())

    def render(self) -> Image | str | None:
        """The film so far, by the render mode."""
        if self.mode is None:
            return None
        return draw(self.film) if self.mode == "rgb_array" else draw_text(self.film)
