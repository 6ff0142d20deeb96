"""Each seeded mistake is found by the check and the rule that are there for it, and no rule is without a mistake."""

import pytest

from deploy.verify.check import CHECKS
from deploy.verify.mistakes import MISTAKES, Soil, answers
from deploy.verify.mistakes.draft import Mistake
from deploy.verify.rendered import rule_name

NEEDS_DEFINITIONS = {each.name for each in CHECKS if each.needs_definitions}


def test_the_ground_is_clean(ground: Soil) -> None:
    assert not ground.before, "\n".join(map(str, ground.before))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.what.replace(" ", "-"))
def test_it_is_found(mistake: Mistake, ground: Soil) -> None:
    if mistake.check in NEEDS_DEFINITIONS and any(each.skipped for each in CHECKS if each.name == mistake.check):
        pytest.skip("needs KubeRay's CRDs in ../shared/crds")
    found = ground.found(mistake)
    assert answers(mistake, found), "\n".join(map(str, found)) or "nothing was found"


def test_every_rule_finds_a_mistake() -> None:
    rules = {(check.name, rule_name(rule)) for check in CHECKS for rule in check.rules}
    assert rules == {(each.check, each.rule) for each in MISTAKES}
    assert len({each.what for each in MISTAKES}) == len(MISTAKES) >= 32
