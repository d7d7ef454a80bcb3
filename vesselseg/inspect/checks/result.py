"""What a check of a dataset folder found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vesselseg.inspect.checks.find_leaks import Duplicates
from vesselseg.inspect.checks.finding_kinds import SERIOUS, SEVERITIES, CheckFinding
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset


@dataclass(frozen=True)
class Check:
    """What was measured and found; findings are sorted, the worst first."""

    measured: MeasuredDataset
    repeated: Duplicates
    findings: Sequence[CheckFinding]

    @property
    def serious(self) -> bool:
        """Whether something is wrong that makes results wrong, or stops a training."""
        return any(finding.kind.severity == SERIOUS for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity, the worst first."""
        found = Counter(finding.kind.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}
