"""All checks, a column of the table each, over all overlays."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.verify import (
    autoscaler,
    cel_rule,
    core_schema,
    crd_schema,
    environment,
    job,
    metric,
    monitor,
    operator_rule,
    pod_security,
    rbac,
    reference,
    selector,
    serve_config,
    size,
    snapshot,
)
from deploy.verify.render import Render
from deploy.verify.rendered import Finding, Rendered, Rule, apply_rules


@dataclass(frozen=True, slots=True)
class Check:
    """A column: its rules, and what must be there for it."""

    name: str
    rules: tuple[Rule, ...]
    needs_definitions: bool = False

    @property
    def skipped(self) -> bool:
        """Whether what it needs is not there."""
        return self.needs_definitions and crd_schema.definitions_folder() is None

    def findings(self, overlay: Rendered) -> list[Finding]:
        """What its rules say about an overlay."""
        return [] if self.skipped else apply_rules(overlay, check=self.name, rules=self.rules)


CHECKS: Final = (
    Check("core", core_schema.RULES),
    Check("crd", crd_schema.RULES, needs_definitions=True),
    Check("cel", cel_rule.RULES, needs_definitions=True),
    Check("operator", operator_rule.RULES),
    Check("references", (*reference.RULES, *selector.RULES, *snapshot.RULES)),
    Check("rbac", rbac.RULES),
    Check("security", pod_security.RULES),
    Check("serve", (*serve_config.RULES, *size.RULES, *job.RULES)),
    Check("environment", environment.RULES),
    Check("metrics", (*monitor.RULES, *metric.RULES)),
    Check("ray", autoscaler.RULES),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row: an overlay's findings, and which checks could not be asked."""

    overlay: str
    findings: tuple[Finding, ...]
    skipped: frozenset[str]
    unchecked: tuple[str, ...] = ()

    def count(self, check: str) -> int:
        """How many findings a check has."""
        return sum(each.check == check for each in self.findings)


def verdicts(renders: Iterable[Render], *, told: Callable[[str], None] = lambda _: None) -> list[Verdict]:
    """Every check on every overlay that rendered. `told` hears what is looked at."""
    found = []
    for each in renders:
        told(each.name)
        found.append(verdict(each))
    return found


def verdict(render: Render, checks: Sequence[Check] = CHECKS) -> Verdict:
    """Every check on one overlay."""
    if render.rendered is None:
        return Verdict(render.name, render.findings, frozenset(each.name for each in checks))
    findings = [*render.findings, *(found for each in checks for found in each.findings(render.rendered))]
    skipped = frozenset(each.name for each in checks if each.skipped)
    return Verdict(render.name, tuple(findings), skipped, tuple(crd_schema.unchecked(render.rendered)))
