"""What policies saw in training: such a family is no test of them, under its own name or another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pikv_env.workloads.families import FAMILIES, Split, families_of
from pikv_env.workloads.fingerprint import fingerprint
from pikv_env.workloads.structure import structure
from pikv_runtime.policy import load_bundle

SEEN = "seen"
"""What an evaluation calls a family that a policy was trained on or chosen by, instead of its split."""
NEAR = "near copy of"
"""How the split of a family begins that differs from a seen one in numbers only."""


@dataclass(frozen=True)
class Seen:
    """Families that were trained on, or by which a checkpoint was chosen."""

    families: dict[str, str]
    """Name to fingerprint ("" if unknown)."""
    structures: dict[str, str] = field(default_factory=dict)
    """Name to structure: what is left of a family without its numbers; absent if unknown."""

    @classmethod
    def by(cls, bundles: Iterable[str], names: Iterable[str] = ()) -> Seen:
        """What bundles tell, and `names`; old bundles tell names only, whose families are taken as they are now."""
        found: dict[str, str] = {}
        known: dict[str, str] = {}
        for bundle in bundles:
            told = load_bundle(bundle).manifest.provenance
            names = [*names, *told.get("families", ()), *told.get("validation", ())]
            found |= told.get("fingerprints", {})
            known |= told.get("structures", {})
        names = dict.fromkeys(names)
        found |= {n: fingerprint(FAMILIES[n]) if n in FAMILIES else "" for n in names if n not in found}
        # A name may mean another family today: its structure is known where its fingerprint is the same.
        same = [n for n in found if n in FAMILIES and n not in known and fingerprint(FAMILIES[n]) == found[n]]
        return cls(found, known | {n: structure(FAMILIES[n]) for n in same})

    def match(self, family: str) -> str | None:
        """The seen family that `family` is, by name or by definition; None: it was not seen."""
        if family in self.families:
            return family
        own = fingerprint(FAMILIES[family])
        return next((name for name, known in self.families.items() if known == own), None)

    def near(self, family: str) -> str | None:
        """The seen family of which `family` is a near copy, one that differs in numbers only; None: of none."""
        if not self.structures or self.match(family):
            return None
        own = structure(FAMILIES[family])
        return next((name for name, known in self.structures.items() if known == own), None)

    def split(self, family: str) -> str:
        """What an evaluation calls the family: its split, `SEEN`, or `near copy of X`."""
        if self.match(family):
            return SEEN
        near = self.near(family)
        return FAMILIES[family].split if near is None else f"{NEAR} {near}"


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Name to fingerprint of families, for the provenance of what is trained on them."""
    return {name: fingerprint(FAMILIES[name]) for name in sorted(set(names))}


def structures(names: Iterable[str]) -> dict[str, str]:
    """Name to structure of families, for the same purpose."""
    return {name: structure(FAMILIES[name]) for name in sorted(set(names))}


def check_split(families: Sequence[str], seen: Seen, split: Split | None = None) -> None:
    """Raise ValueError where a family would be called what it is not.

    A family of the test split that a policy saw is refused always; with `split`, so is a family of another split, and
    with "test" any that was seen, and near copies of such.
    """
    for family in families:
        own, match = FAMILIES[family].split, seen.match(family)
        if match and "test" in (own, split):
            same = f"has the contents, arrivals and sharing of {match!r}; " if match != family else ""
            raise ValueError(
                f"{family}: {same}a policy saw it in training, so it cannot be a test family; allowed here: "
                f"{_unseen(seen)}"
            )
        if split and own != split:
            raise ValueError(
                f"{family}: is of the {own} split, not of {split!r}; allowed here: {', '.join(families_of(split))}"
            )
        near = seen.near(family)
        if near and split == "test":
            raise ValueError(
                f"{family}: a near copy of {near!r}, which a policy saw in training: the same contents, arrivals and "
                f"sharing with other numbers; allowed here: {_unseen(seen)}"
            )


def _unseen(seen: Seen) -> str:
    return ", ".join(f for f in families_of("test") if not seen.match(f) and not seen.near(f)) or "none"
