"""Findings: what a diagnostic measured, and whether it speaks against a number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustsnn.records.schema import Condition

#: `invalid`: the number should not be quoted; `caution`: it needs a footnote; `note`: it is not
#: affected, and the finding is information.
Severity = Literal["invalid", "caution", "note"]
#: The version of the sentences of findings: since 2, a finding that is not flagged has a sentence
#: of its own. Rows without a version hold the sentence of the flag in either case.
WORDING = 2


@dataclass(frozen=True)
class Finding:
    """What one diagnostic measured; a flag is a finding that is flagged.

    Args:
        id: The id of the diagnostic: `D1` to `D16`, `I1` to `I6`, or `AA` for a flag that only
            AutoAttack has.
        slug: The name of the flag in `results.csv`.
        flagged: Whether the finding speaks against the number.
        severity: How much a flag speaks against the number.
        sentence: What the finding means if it is flagged, for readers.
        evidence: The number behind the finding; NaN if nothing could be measured.
        details: More numbers, ready for JSON.
        rows: The conditions that the finding concerns; empty for all. A condition with an empty
            attack stands for every attack of that norm and size.
        passed: What the finding means if it is not flagged; empty where `sentence` says that too.

    Examples:
        >>> Finding("D10", "ties", True, "caution", "Two classes tie.", 0.25).as_flag()["flag"]
        'ties'
    """

    id: str
    slug: str
    flagged: bool
    severity: Severity
    sentence: str
    evidence: float
    details: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Condition, ...] = ()
    passed: str = ""

    @property
    def said(self) -> str:
        """The sentence of what was found: that of a flag only if the finding is flagged.

        Examples:
            >>> Finding("D10", "ties", False, "caution", "Two tie.", 0.0, passed="None tie.").said
            'None tie.'
        """
        return self.sentence if self.flagged or not self.passed else self.passed

    def about(self, *rows: Condition) -> Finding:
        """The same finding, about those conditions."""
        return dataclasses.replace(self, rows=rows)

    def as_check(self) -> dict[str, Any]:
        """The finding as a row of the manifest's `preflight`."""
        return {
            "check": self.slug,
            "passed": not self.flagged,
            "evidence": self.evidence,
            "sentence": self.said,
            "id": self.id,
            "details": dict(self.details),
            **self._wording(),
        }

    def as_flag(self) -> dict[str, Any]:
        """The finding as a row of the manifest's `flags`."""
        return {
            "flag": self.slug,
            "severity": self.severity,
            "sentence": self.sentence,
            "evidence": plain(self.evidence),
            "rows": [list(key) for key in self.rows],
            "id": self.id,
            "details": plain(dict(self.details)),
        }

    def as_measure(self) -> dict[str, Any]:
        """The finding as a row of the manifest's `probe` or `diagnostics`, flagged or not."""
        size = {"norm": self.rows[0].norm, "epsilon": self.rows[0].epsilon} if self.rows else {}
        return {
            "id": self.id,
            "slug": self.slug,
            "flagged": self.flagged,
            "severity": self.severity,
            "sentence": self.said,
            "evidence": plain(self.evidence),
            "details": plain(dict(self.details)),
            **size,
            **self._wording(),
        }

    def _wording(self) -> dict[str, int]:
        """What tells a row of a finding that is not flagged from one of an older run."""
        return {} if self.flagged else {"wording": WORDING}


#: The slug of D15, which entries of suites ask for by `when: blind`.
BLIND = "blind-score"
#: The share of gradients that may be all zero: of an attack, or of the images of a check.
MOST_ZERO_GRADIENTS = 0.05
#: The accuracy by which a weaker attack may beat a stronger one before that is flagged.
MARGIN = 0.005
#: The checks of the preflight after which a number can still be quoted, with a footnote.
CAUTIONS = ("ties", "neuron-modes", "neurons-not-reached", "weights-not-named")


def of_check(row: Mapping[str, Any]) -> Finding:
    """The finding that a row of the manifest's `preflight` holds.

    Examples:
        >>> row = {"check": "ties", "passed": False, "evidence": 0.25, "sentence": "Two tie."}
        >>> of_check(row).severity
        'caution'
    """
    slug = str(row["check"])
    return Finding(
        id=str(row.get("id") or ""),
        slug=slug,
        flagged=not row["passed"],
        severity="caution" if slug in CAUTIONS else "invalid",
        sentence=str(row["sentence"]),
        evidence=float(row["evidence"]),
        details=row.get("details") or {},
    )


def of_measure(row: Mapping[str, Any]) -> Finding:
    """The finding that a row of the manifest's `probe` holds, about its norm and size."""
    evidence = row["evidence"]
    return Finding(
        id=str(row["id"]),
        slug=str(row["slug"]),
        flagged=bool(row["flagged"]),
        severity=row["severity"],
        sentence=str(row["sentence"]),
        evidence=float("nan") if evidence is None else float(evidence),
        details=row["details"],
        rows=(Condition("", str(row["norm"]), str(row["epsilon"])),),
    )


def plain(value: Any) -> Any:
    """A value ready for JSON: numbers to six digits, None for a number that is not finite.

    Examples:
        >>> plain({"share": 1 / 3, "none": float("nan")})
        {'share': 0.333333, 'none': None}
    """
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
