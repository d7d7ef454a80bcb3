"""The result of checking a dataset folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vesselseg.inspect.checks.find_leaks import Duplicates
from vesselseg.inspect.checks.finding_kinds import SERIOUS, SEVERITIES, CheckFinding
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset


@dataclass(frozen=True)
class CheckResult:
    """Measurements and findings of a dataset folder; findings are sorted, the most serious first."""

    measured: MeasuredDataset
    duplicates: Duplicates
    findings: Sequence[CheckFinding]

    @property
    def serious(self) -> bool:
        """Whether a finding invalidates results or makes training fail."""
        return any(finding.kind.severity == SERIOUS for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings per severity, the most serious first."""
        found = Counter(finding.kind.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}
