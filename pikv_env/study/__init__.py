"""Measurements that answer what readers of PiKV ask: hits, accuracy, conflicts, look-ups, placement, proxies.

`benchmarks/study.py` runs them; `docs/study.md` says what they found.
"""
