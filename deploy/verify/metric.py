"""Rules, alerts and dashboards ask for series that our processes tell, by labels and values that these have."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deploy.verify.expression import Matcher, Selector, groupings, selectors
from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, title
from deploy.verify.series import Series, declared_series

_TEMPLATE_LABEL: Final = re.compile(r"\$labels\.(\w+)")


def told_metrics(overlay: Rendered) -> Iterator[Flaw]:
    """Each name is told by a process of ours, or recorded by a rule."""
    for thing, expression, known in _expressions(overlay):
        for selector in selectors(expression):
            if not list(_series(selector, known)):
                yield Flaw(thing, f"{selector.name} is told by nobody: see rag_stack/metrics.py for the names")


def told_labels(overlay: Rendered) -> Iterator[Flaw]:
    """Each label is one of the series that are asked for or added up by it."""
    for thing, expression, known in _expressions(overlay):
        for selector in selectors(expression):
            labels = [each.label for each in selector.matchers]
            yield from (Flaw(thing, wrong) for wrong in _absent(labels, [selector], known))
        for grouping in groupings(expression):
            chosen = list(selectors(grouping.operand))
            yield from (Flaw(thing, wrong) for wrong in _absent(grouping.labels, chosen, known))
    for rule_thing, rule, known in _alerts(overlay):
        given = _labels_of(str(rule.get("expr")), known)
        for label in sorted({*_TEMPLATE_LABEL.findall(json.dumps(rule.get("annotations") or {}))} - given):
            yield Flaw(rule_thing, f"its text has $labels.{label}, its expression has {sorted(given)}: correct one")


def told_values(overlay: Rendered) -> Iterator[Flaw]:
    """Each value is one that the label takes, where all of them are known."""
    for thing, expression, known in _expressions(overlay):
        yield from (Flaw(thing, each) for each in impossible_values(expression, known))


RULES: Final[tuple[Rule, ...]] = (told_metrics, told_labels, told_values)


def impossible_values(expression: str, known: Mapping[str, Series] | None = None) -> Iterator[str]:
    """The matchers of an expression that never hold, each with what its label may be."""
    for selector in selectors(expression):
        for series in _series(selector, known or declared_series()):
            for matcher in selector.matchers:
                values = series.values.get(matcher.label)
                if values and not _holds(matcher, values):
                    yield f'{series.name} never has {matcher.label}="{matcher.value}", only {sorted(values)}'


def _holds(matcher: Matcher, values: frozenset[str]) -> bool:
    return matcher.is_open or matcher.takes_any_of(values)


def _series(selector: Selector, known: Mapping[str, Series]) -> Iterator[Series]:
    if selector.is_pattern:
        yield from (each for name, each in known.items() if re.fullmatch(selector.name, name))
    elif selector.name in known:
        yield known[selector.name]


def _absent(labels: Any, chosen: list[Selector], known: Mapping[str, Series]) -> Iterator[str]:
    found = {each.name: each for selector in chosen for each in _series(selector, known)}
    for series in found.values():
        for label in labels:
            if label not in series.labels:
                yield f"{series.name} has no label {label!r}, only {sorted(series.labels)}: correct the label"


def _expressions(overlay: Rendered) -> Iterator[tuple[str, str, Mapping[str, Series]]]:
    """Every expression, with where it stands, and the series that there are."""
    known = {**declared_series(), **_recorded(overlay)}
    for document in overlay.of("PrometheusRule"):
        for rule in _rules(document):
            name = rule.get("alert") or rule.get("record")
            yield f"{title(document)} {name}", str(rule.get("expr")), known
    for document in overlay.of("ConfigMap"):
        for name, text in (document.get("data") or {}).items():
            if name.endswith(".json") and '"panels"' in text:
                yield from ((f"{title(document)} {name}", each, known) for each in _queries(json.loads(text)))


def _alerts(overlay: Rendered) -> Iterator[tuple[str, Document, Mapping[str, Series]]]:
    known = {**declared_series(), **_recorded(overlay)}
    for document in overlay.of("PrometheusRule"):
        yield from ((f"{title(document)} {each['alert']}", each, known) for each in _rules(document) if "alert" in each)


def _recorded(overlay: Rendered) -> dict[str, Series]:
    """What rules record: with the labels by which they add up, and the values of what they add up."""
    found: dict[str, Series] = {}
    for rule in (each for document in overlay.known("PrometheusRule") for each in _rules(document)):
        if rule.get("record"):
            known, expression = {**declared_series(), **found}, str(rule.get("expr"))
            values: dict[str, frozenset[str]] = {}
            for each in (each for selector in selectors(expression) for each in _series(selector, known)):
                values = {**each.values, **values}
            name = str(rule["record"])
            found[name] = Series(name, _labels_of(expression, known), values)
    return found


def _labels_of(expression: str, known: Mapping[str, Series]) -> frozenset[str]:
    """The labels of its result: those of a `by` that comes before all series, else at most those that these have."""
    asked = list(selectors(expression))
    outer = next((each for each in groupings(expression) if each.word == "by"), None)
    if outer is not None and all(outer.at < each.at for each in asked):
        return frozenset(outer.labels) - ({"le"} if "histogram_quantile" in expression else set())
    return frozenset(label for selector in asked for each in _series(selector, known) for label in each.labels)


def _rules(document: Document) -> list[Document]:
    return [rule for group in dig(document, "spec", "groups") or [] for rule in group.get("rules") or []]


def _queries(value: Any) -> Iterator[str]:
    """The expressions of a dashboard, wherever they stand, and those of its variables."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("expr", "query") if isinstance(value.get(key), str))
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _queries(each)
