"""The card of a bundle: what it is, where it comes from, what it reached; every number from the run's own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pikv_agents.report.verdict import verdict
from pikv_runtime.policy import PolicyNetwork


def make_card(
    name: str,
    version: str,
    network: PolicyNetwork,
    provenance: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> str:
    """README.md of a bundle."""
    widths = " → ".join(str(w) for w in (len(network.mean), *network.hidden, len(network.layers[-1][1])))
    parts = [
        f"# {name} {version}",
        f"A policy for the KV cache of Mixture-of-Experts models: control view `{network.view}`, {widths}, "
        f"{network.activation}. It decides every {provenance['interval_s']:g} s.",
        "## Use",
        "    import pikv_runtime as pikv\n"
        f'    policy = pikv.load_policy("trained_policies/{name}-{version}")  # or wherever the folder lies\n'
        "    control = policy.decide(telemetry)",
        "## Training",
        _training(provenance, training),
        "## Results",
        _results(evaluation),
        "## Limits",
        _limits(provenance),
    ]
    return "\n\n".join(parts) + "\n"


def _training(provenance: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    rows = [
        ("families", ", ".join(provenance["families"])),
        ("chosen by", ", ".join(provenance["validation"])),
        ("traces", provenance["traces"].get("model", "")),
        ("prices", f"profile {provenance['profile']}, geometry {provenance['geometry']}"),
        ("pressure", " to ".join(f"{p:g}" for p in provenance["pressure"])),
        ("learner", f"{provenance['learner']}, seed {provenance['seeds'][0]}, step {provenance['step']:,} kept"),
        ("start", f"`{provenance['start']}`"),
        ("commit", provenance["commit"]),
        ("command", f"`{provenance['command']}`" if provenance["command"] else ""),
    ]
    lines = ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows if value)]
    if training.get("sentence"):
        lines += ["", training["sentence"]]
    return "\n".join(lines)


def _results(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation or not evaluation.get("families"):
        return "Not evaluated yet (`pikv evaluate`)."
    lines = []
    if "learned" in evaluation["iqm"]:
        found = verdict(evaluation)  # type: ignore[arg-type]
        gate = "passed" if found.promoted else "not passed"
        lines += [f"{found.sentence} Promotion gate (wins, no family over 2 % worse than static_tuned): {gate}."]
    lines += ["", "Less J is better; the range is a 95 % bootstrap interval over workloads.", ""]
    lines += ["| family | split | policy | J | interval | latency | memory | fidelity |", "|" + " --- |" * 8]
    for family, block in evaluation["families"].items():
        for policy, row in sorted(block["policies"].items(), key=lambda item: item[1]["J"]):
            ci = row.get("ci95")
            span = f"{ci[0]:.3f} to {ci[1]:.3f}" if ci else "–"
            lines.append(
                f"| {family} | {block['split']} | {policy} | {row['J']:.3f} | {span} | {row['latency']:.3f} "
                f"| {row['memory']:.3f} | {row['fidelity']:.4f} |"
            )
    return "\n".join(lines)


def _limits(provenance: Mapping[str, Any]) -> str:
    return (
        f"Trained and evaluated on recorded traces at the prices of `{provenance['profile']}`; other machines, models "
        "and workloads are a what-if until measured. Serve it behind the guard, which falls back to a heuristic."
    )
