"""Findings: what a diagnostic measured, and whether it speaks against a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: `invalid`: the number should not be quoted; `caution`: it needs a footnote; `note`: good to know.
Severity = Literal["invalid", "caution", "note"]


@dataclass(frozen=True)
class Finding:
    """What one diagnostic measured.

    Args:
        id: `D1` to `D14`, `I1` to `I6`, or `AA` for a flag of AutoAttack only.
        slug: As `results.csv` names it where it is flagged.
        flagged: Whether it speaks against the number.
        severity: How much, if it does.
        sentence: What it means, for readers.
        evidence: The number behind it; NaN where nothing could be measured.
        details: More numbers, ready for JSON.
    """

    id: str
    slug: str
    flagged: bool
    severity: Severity
    sentence: str
    evidence: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As it stands in `manifest.json`: JSON knows no NaN."""
        return {
            "id": self.id,
            "slug": self.slug,
            "flagged": self.flagged,
            "severity": self.severity,
            "sentence": self.sentence,
            "evidence": plain(self.evidence),
            "details": plain(dict(self.details)),
        }


def plain(value: Any) -> Any:
    """Numbers to six digits and containers of JSON; None for what is not finite."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
