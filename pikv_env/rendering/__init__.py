"""Pictures of the cache: what each page was at each interval, as an image or as one screen of text. Numpy only."""

from pikv_env.rendering.screen import RENDER_METADATA, Screen

__all__ = ["RENDER_METADATA", "Screen"]
