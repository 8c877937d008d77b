"""`python -m pikv_runtime serve | policies | verify`: the runtime without the training stack."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pikv_runtime.config import RuntimeConfig

BAD_INPUT, UNFINISHED, RANK_LOST = 2, 3, 4
"""Exit codes beside 0."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pikv_runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve prompts from a JSON-lines file (also under torchrun)")
    serve.add_argument(
        "prompts", type=Path, nargs="?", help='lines of {"prompt": "...", "output_tokens": 32, "arrival_s": 0}'
    )
    serve.add_argument("--model", default="embedded", help="embedded, or a folder in Hugging Face format")
    serve.add_argument("--policy", default=None, help="a heuristic such as lazy/h2o, or a bundle's folder")
    serve.add_argument("--ranks", type=int, default=1, help="virtual ranks, where torchrun does not start real ones")
    serve.add_argument("--device", default="cpu", help="cpu, cuda (one per process under torchrun), or auto")
    serve.add_argument("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved")
    serve.add_argument("--expert-parallel", action="store_true", help="under torchrun: spread expert weights, too")
    serve.add_argument("--clock", choices=("model", "wall"), default="wall")
    serve.add_argument("--read", choices=("exact", "sparse"), default="exact")
    serve.add_argument("--router", default="centroid", help="read-set router of sparse reading")
    serve.add_argument("--codec", choices=("native", "bf16"), default="native", help="top rung of the ladder")
    serve.add_argument("--shard-map", default="expert_home", help="which rank stores a sealed page, e.g. page_stripe")
    serve.add_argument("--cap-mb", type=float, default=None, help="cap on KV of each rank, megabytes")
    serve.add_argument(
        "--journal", type=Path, default=None, help="file of unfinished requests; what it has is finished"
    )
    serve.add_argument("--timeout-s", type=float, default=120.0, help="after which a rank that does not answer is lost")
    serve.add_argument("--drain-s", type=float, default=30.0, help="how long SIGTERM lets running requests go on")
    serve.add_argument("--interface", default=None, help="network interface of links between ranks; default: loopback")
    serve.add_argument("--metrics-port", type=int, default=None, help="Prometheus endpoint; rank r listens at port + r")
    serve.add_argument("--host", default="127.0.0.1", help="address that the metrics endpoint listens at")
    serve.add_argument("--json", type=Path, default=None, help="write the result here")
    policies = commands.add_parser("policies", help="list policy bundles, show one's card, verify one or all")
    policies.add_argument("action", nargs="?", choices=("list", "show", "verify"), default="list")
    policies.add_argument("bundle", nargs="?", default="", help="path or name of a bundle; verify without one: all")
    policies.add_argument("--json", type=Path, default=None, help="write the result here")
    verify = commands.add_parser("verify", help="check a policy bundle: schema, hashes, contract, golden pairs")
    verify.add_argument("bundle", type=Path)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    import torch

    from pikv_runtime.serving import ServeOptions, print_served, serve

    torch.set_num_threads(1)
    config = RuntimeConfig(
        read=arguments.read,
        router=arguments.router if arguments.read == "sparse" else "all",
        codec=arguments.codec,
        shard_map=arguments.shard_map,
        cap_bytes=None if arguments.cap_mb is None else int(arguments.cap_mb * 1e6),
    )
    names = (
        "prompts",
        "model",
        "policy",
        "ranks",
        "clock",
        "device",
        "dtype",
        "journal",
        "timeout_s",
        "drain_s",
        "interface",
        "expert_parallel",
    )
    chosen = {name: getattr(arguments, name) for name in (*names, "metrics_port", "host")}
    result = serve(ServeOptions(config=config, **chosen))
    if result["rank"] == 0:
        print_served(result)
        _write_json(arguments.json, result)
    return UNFINISHED if result["unfinished"] else 0


def _write_json(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(path)  # a reader sees the old file or the whole new one


def _policies(arguments: argparse.Namespace) -> None:
    from pikv_runtime.policy import load_bundle, shelf

    if arguments.action == "show":
        if not arguments.bundle:
            raise ValueError("show needs a bundle: policies show NAME")
        found = load_bundle(shelf.find_bundle(arguments.bundle))
        print(found.card)
        return _write_json(
            arguments.json, {"bundle": str(found.path), "card": found.card, "evaluation": found.evaluation}
        )
    paths = [shelf.find_bundle(arguments.bundle)] if arguments.bundle else shelf.find_bundles()
    rows = [shelf.describe(path) if arguments.action == "verify" else shelf.line(path) for path in paths]
    for row in rows:
        times = ", ".join(f"{name} {us:.1f} µs" for name, us in row.get("decision_us", {}).items())
        state = f"refused: {row['refused']}" if "refused" in row else f"verified, {times}" if times else "loads"
        print(f"{row['bundle']:<24} {row.get('view', '–'):<9} {state}")
    if not rows:
        print("no bundles here: allowed is a path, or a name under ./trained_policies")
    _write_json(arguments.json, {"policies": rows})


def _verify(arguments: argparse.Namespace) -> None:
    from pikv_runtime.policy import load_policy

    policy = load_policy(str(arguments.bundle.resolve()), guard=False)
    manifest = policy.bundle.manifest  # type: ignore[attr-defined]
    print(f"{manifest.name}-{manifest.version}: verified (contract {manifest.contract_hash}, golden pairs reproduced)")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code, see `docs/operations.md`; errors are one line on stderr."""
    from pikv_runtime.liveness import RankLostError

    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost rank is a page of c10d's stack frames
    try:
        run = {"serve": _serve, "policies": _policies, "verify": _verify}[arguments.command]
        return run(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(RANK_LOST)  # the links of the lost rank are not waited for


if __name__ == "__main__":
    sys.exit(main())
