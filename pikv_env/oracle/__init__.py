"""The clairvoyant bound: what the best decisions on a fixed timeline would cost, bracketed (docs/oracle.md)."""

from pikv_env.oracle.bracket import Bracket, Effort, bracket, solve
from pikv_env.oracle.free import free_bound
from pikv_env.oracle.played import Played, played_bracket
from pikv_env.oracle.timeline import Timeline, played_timeline, reference_timeline

__all__ = [
    "Bracket",
    "Effort",
    "Played",
    "Timeline",
    "bracket",
    "free_bound",
    "played_bracket",
    "played_timeline",
    "reference_timeline",
    "solve",
]
