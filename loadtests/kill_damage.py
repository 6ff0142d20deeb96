"""What a victim of `loadtests.kill` has to say after its processes were killed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtests.report import Value


@dataclass(frozen=True, slots=True)
class Damage:
    """What was acknowledged and is not there, what does not fit together, and counts of what was seen.

    The figure `acknowledged` is drawn: how many things the killed processes had been told are done.
    """

    lost: tuple[str, ...] = ()
    inconsistent: tuple[str, ...] = ()
    figures: Mapping[str, Value] = field(default_factory=dict)
