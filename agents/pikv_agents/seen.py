"""What policies saw in training: such a family is no test of them, under its own name or another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pikv_env.workloads.families import FAMILIES, Split, families_of
from pikv_env.workloads.fingerprint import fingerprint
from pikv_runtime.policy import load_bundle

SEEN = "seen"
"""What an evaluation calls a family that a policy was trained on or chosen by, instead of its split."""


@dataclass(frozen=True)
class Seen:
    """Families that were trained on, or by which a checkpoint was chosen: name to fingerprint ("" if unknown)."""

    families: dict[str, str]

    @classmethod
    def by(cls, bundles: Iterable[str], names: Iterable[str] = ()) -> Seen:
        """What bundles tell, and `names`; old bundles tell names only, whose families are taken as they are now."""
        found: dict[str, str] = {}
        for bundle in bundles:
            told = load_bundle(bundle).manifest.provenance
            names = [*names, *told.get("families", ()), *told.get("validation", ())]
            found |= told.get("fingerprints", {})
        return cls(found | {n: fingerprint(FAMILIES[n]) if n in FAMILIES else "" for n in names if n not in found})

    def match(self, family: str) -> str | None:
        """The seen family that `family` is, by name or by definition; None: it was not seen."""
        if family in self.families:
            return family
        own = fingerprint(FAMILIES[family])
        return next((name for name, known in self.families.items() if known == own), None)

    def split(self, family: str) -> str:
        """The family's split, or `SEEN`."""
        return SEEN if self.match(family) else FAMILIES[family].split


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Name to fingerprint of families, for the provenance of what is trained on them."""
    return {name: fingerprint(FAMILIES[name]) for name in sorted(set(names))}


def check_split(families: Sequence[str], seen: Seen, split: Split | None = None) -> None:
    """Raise ValueError where a family would be called what it is not.

    A family of the test split that a policy saw is refused always; with `split`, so is a family of another split, and
    with "test" any that was seen.
    """
    for family in families:
        own, match = FAMILIES[family].split, seen.match(family)
        if match and "test" in (own, split):
            same = f"has the contents, arrivals and sharing of {match!r}; " if match != family else ""
            unseen = ", ".join(f for f in families_of("test") if not seen.match(f)) or "none"
            raise ValueError(
                f"{family}: {same}a policy saw it in training, so it cannot be a test family; allowed here: {unseen}"
            )
        if split and own != split:
            raise ValueError(
                f"{family}: is of the {own} split, not of {split!r}; allowed here: {', '.join(families_of(split))}"
            )
