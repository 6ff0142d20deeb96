"""Seeded mistakes: each is made in a rendered overlay, and the check that is there for it must find it.

ground.yaml        one correct object of each kind, beside the overlay's own
draft              an overlay's documents as somebody is about to change them
fields, operator, names, rights, serve, settings    the mistakes
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from deploy.verify.check import CHECKS
from deploy.verify.mistakes import fields, names, operator, rights, serve, settings
from deploy.verify.mistakes.draft import Draft, Mistake
from deploy.verify.render import Render
from deploy.verify.rendered import Finding, Rendered

MISTAKES: Final[tuple[Mistake, ...]] = (
    *fields.MISTAKES,
    *operator.MISTAKES,
    *names.MISTAKES,
    *rights.MISTAKES,
    *serve.MISTAKES,
    *settings.MISTAKES,
)
_GROUND: Final = Path(__file__).with_name("ground.yaml")


@dataclass(frozen=True, slots=True)
class Soil:
    """Where mistakes are seeded: an overlay with the ground, and what its checks say before."""

    overlay: Rendered
    before: frozenset[Finding]

    def found(self, mistake: Mistake) -> list[Finding]:
        """What the mistake's check says that it did not say before. Raises LookupError where nothing can be seeded."""
        draft = Draft(self.overlay)
        mistake.seed(draft)
        return [each for each in _findings(draft.rendered(), (mistake.check,)) if each not in self.before]


def soil(overlay: Rendered) -> Soil:
    """An overlay made ready."""
    draft = Draft(overlay)
    draft.add(_GROUND.read_text(encoding="utf-8"))
    ground = draft.rendered()
    return Soil(ground, frozenset(_findings(ground, [each.name for each in CHECKS])))


def answers(mistake: Mistake, findings: Iterable[Finding]) -> bool:
    """Whether a finding is by the mistake's rule and says what it should."""
    return any(each.rule == mistake.rule and mistake.word in f"{each.thing}: {each.message}" for each in findings)


def print_mistakes(renders: Iterable[Render], console: Console) -> int:
    """Seed each mistake in the first overlay that takes it; one line each, and how many were found."""
    rendered = [each.rendered for each in renders if each.rendered is not None and not each.rendered.beside]
    soils = [soil(each) for each in sorted(rendered, key=lambda each: each.name != "single-gpu")[:1]]
    skipped = {each.name for each in CHECKS if each.skipped}
    asked = [each for each in MISTAKES if each.check not in skipped]
    count = 0
    for mistake in asked:
        found = any(answers(mistake, each.found(mistake)) for each in soils)
        count += found
        mark = "[green]found[/green]" if found else "[red]missed[/red]"
        console.print(f"{mark}  {mistake.check}/{mistake.rule}: {mistake.what}", soft_wrap=True, highlight=False)
    console.print(f"{count}/{len(asked)} seeded mistakes found" + (f"; skipped: {sorted(skipped)}" if skipped else ""))
    return int(count < len(asked))


def _findings(overlay: Rendered, names: Iterable[str]) -> Iterator[Finding]:
    return (found for each in CHECKS if each.name in names for found in each.findings(overlay))
