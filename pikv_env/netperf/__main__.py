"""`python -m pikv_env.netperf TABLES VIDUR`: fit the shipped hardware profiles from published tables."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from pikv_env.netperf.machines import fit_profiles
from pikv_runtime.profiles import FOLDER, Profile


def dump(profile: Profile) -> str:
    """A profile as JSON, one line per link; what is at its default is left out."""
    body = {key: value for key, value in asdict(profile).items() if value not in ("", {}, None, ())}
    links = [{k: v for k, v in link.items() if v is not None and v is not False} for link in body.pop("links", ())]
    lines = ",\n  ".join(json.dumps(link) for link in links)
    return (
        json.dumps({**body, "geometry": ""}, indent=1, ensure_ascii=False)[:-2] + f',\n "links": [\n  {lines}\n ]\n}}\n'
    )


def main(argv: list[str] | None = None) -> int:
    """Fit, print one line a profile, write the files."""
    parser = argparse.ArgumentParser(prog="python -m pikv_env.netperf", description=__doc__)
    parser.add_argument("tables", type=Path, help="folder with aiconfigurator's tables, Parquet or CSV")
    parser.add_argument("vidur", type=Path, help="Vidur's network.tar.gz")
    parser.add_argument("--out", type=Path, default=FOLDER / "machines", help="where the profiles go")
    args = parser.parse_args(argv)
    try:
        profiles = fit_profiles(args.tables, args.vidur)
    except (OSError, ModuleNotFoundError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for profile in profiles:
        (args.out / f"{profile.name}.json").write_text(dump(profile), encoding="utf-8")
        print(f"{profile.name}: {len(profile.links)} links, held-out error {profile.fit_error:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
