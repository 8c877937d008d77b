"""The built-in traces beside public ones: figures only, as `benchmarks/workload-traces.json`.

    python benchmarks/workload_traces.py FOLDER

FOLDER holds `mooncake-fast25/conversation_trace.jsonl.gz` (github.com/kvcache-ai/Mooncake, FAST25-release/traces,
commit 3b5a594) and `weka-agentic/sessions-rle.jsonl.gz` (github.com/callanjfox/kv-cache-tester, traces/, commit
94f6046, 355 sessions with run-length coded hashes). Half an hour of each is measured, as ours are half an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pikv_agents.commands.options import origin
from pikv_agents.tracking.metrics import write_json
from pikv_env.workloads.converters import ConvertOptions, convert
from pikv_env.workloads.mooncake import read_mooncake
from pikv_env.workloads.replay import trace_path
from pikv_env.workloads.statistics import describe_trace
from pikv_env.workloads.trace_models import TRACE_MODELS

PUBLIC = {
    "conversation": (
        "mooncake",
        "mooncake-fast25/conversation_trace.jsonl.gz",
        ConvertOptions(start_s=1500.0, duration_s=1800.0),
        "Mooncake FAST'25 conversation trace, seconds 1500 to 3300",
    ),
    "agent-loop": (
        "weka",
        "weka-agentic/sessions-rle.jsonl.gz",
        ConvertOptions(start_s=3600.0, duration_s=1800.0, block_tokens=2048, session_gap_s=75.0),
        "Weka agentic sessions, started every 75 s on average, seconds 3600 to 5400",
    ),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("workload-traces.json"))
    given = parser.parse_args()
    rows = []
    for name in TRACE_MODELS:
        tokens = TRACE_MODELS[name].block_tokens
        form, file, options, source = PUBLIC[name]
        ours = describe_trace(read_mooncake(trace_path(f"builtin:{name}")), tokens, jitter_s=3.0)
        theirs = describe_trace(convert(form, given.folder / file, options), tokens, jitter_s=3.0)
        rows.append({"trace": name, "block_tokens": tokens, "public": source, "ours": ours, "theirs": theirs})
        for key in ours:
            print(f"{name:<14}{key:<18}{ours[key]:>12.3f}{theirs[key]:>12.3f}")
    meta = origin() | {"command": "python benchmarks/workload_traces.py FOLDER"}
    write_json(given.json, {"rows": rows, "meta": meta})


if __name__ == "__main__":
    main()
