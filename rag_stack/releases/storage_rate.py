"""How fast each tier gives its bytes, and what a pod waits for: measured, given, or assumed by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from rag_stack.errors import ConfigError, NotMeasuredError
from rag_stack.releases.measurement import Measurement

Basis: TypeAlias = Literal["measured", "given", "assumed"]

# What is taken where nothing was measured, in decimal gigabytes a second. They are guesses, and shown as such.
ASSUMED_RATES: Final[Mapping[str, float]] = {
    "origin": 0.5,
    "peer": 0.5,
    "shared": 0.5,
    "volume": 0.5,
    "snapshot": 0.1,
    "registry": 0.2,
    "disk": 0.5,
    "mirror": 0.5,
    "engine": 1.0,
}
# Seconds before a replica's process begins: the container on a node that has the image, a volume made and attached,
# and a node, which is taken to be there already.
ASSUMED_WAITS: Final[Mapping[str, float]] = {"pod": 15.0, "attach": 20.0, "node": 0.0}
# A mirror lies on a node's disk, and a server without one has measured its disk perhaps.
_STANDS_FOR: Final[Mapping[str, str]] = {"mirror": "disk"}
_NOTHING: Final = (
    "no start of this release has been measured: start the server once against this object store, ask a running one "
    "with --server, or give a report with --measured (loadtests/results/coldstart.json is one)"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and what it rests on; `where` names who measured it."""

    value: float
    basis: Basis
    where: str = ""


@dataclass(frozen=True, slots=True)
class StorageRates:
    """Gigabytes a second by tier, seconds by wait, and what a start takes besides."""

    rates: Mapping[str, Figure]
    waits: Mapping[str, Figure]
    fixed_s: Figure

    def seconds(self, tier: str, size_bytes: float) -> float:
        """For so many bytes."""
        return size_bytes / (self.rates[tier].value * 1e9)


def storage_rates(
    measurements: Sequence[Measurement], *, rates: Mapping[str, float], waits: Mapping[str, float]
) -> StorageRates:
    """What was given goes before what was measured, the first measurement before the next, and all before a guess.

    Raises NotMeasuredError where no measurement tells of a start, ConfigError for a name that is none or no number
    above zero.
    """
    _check("rate", rates, ASSUMED_RATES, least=1e-9)
    _check("seconds", waits, ASSUMED_WAITS, least=0.0)
    fixed_s = next((Figure(m.fixed_s, "measured", m.where) for m in measurements if m.fixed_s is not None), None)
    if fixed_s is None:
        raise NotMeasuredError(_NOTHING)
    return StorageRates(
        {tier: _rate(tier, measurements, given=rates.get(tier)) for tier in ASSUMED_RATES},
        {
            name: Figure(waits[name], "given") if name in waits else Figure(assumed, "assumed")
            for name, assumed in ASSUMED_WAITS.items()
        },
        fixed_s,
    )


def _rate(tier: str, measurements: Sequence[Measurement], *, given: float | None) -> Figure:
    if given is not None:
        return Figure(given, "given")
    for name in (tier, _STANDS_FOR.get(tier, tier)):
        for measurement in measurements:
            if (rate := measurement.gb_per_s(name)) is not None:
                where = measurement.where if name == tier else f"{measurement.where}, of the {name}"
                return Figure(rate, "measured", where)
    return Figure(ASSUMED_RATES[tier], "assumed")


def _check(what: str, given: Mapping[str, float], known: Mapping[str, float], *, least: float) -> None:
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"--{what} {name}: there is none of that name; expected one of {', '.join(known)}")
        if not least <= value < float("inf"):
            raise ConfigError(f"--{what} {name}={value:g}: expected a number {'above' if least else 'from'} 0")
