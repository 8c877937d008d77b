"""Recorded attention traces: what an exact run attended to, page by page."""

from pikv_env.traces.library import TraceLibrary
from pikv_env.traces.synthetic import synthetic_library
from pikv_env.traces.validation import TraceError

__all__ = ["TraceError", "TraceLibrary", "synthetic_library"]
