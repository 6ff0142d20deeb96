"""The verifier: every overlay passes it, and its parts do what the API server, KubeRay and kustomize would."""

import copy
import io
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from rich.console import Console

from deploy.verify import cel_rule, crd_schema
from deploy.verify.check import CHECKS, Verdict, verdict
from deploy.verify.environment import file_root
from deploy.verify.expression import groupings, selectors
from deploy.verify.metric import impossible_values
from deploy.verify.pod_template import matches
from deploy.verify.render import KUBERAY, Render, render, render_all, short_name, targets
from deploy.verify.rendered import Finding, Rendered, embedded
from deploy.verify.table import print_report

TARGETS = [short_name(each) for each in targets()]
CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"


@pytest.mark.parametrize("name", TARGETS)
def test_an_overlay_is_clean(name: str, renders: dict[str, Render]) -> None:
    found = verdict(renders[name]).findings
    assert not found, "\n".join(map(str, found))


def test_what_is_looked_at() -> None:
    sizes = {"dev", "single-gpu", "multi-gpu", "large-index"}
    assert sizes <= set(TARGETS)
    assert "jobs/model-import" in TARGETS
    assert not {"base", "components/size", "components/serve"} & set(TARGETS)


def test_an_overlay_that_kustomize_refuses_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [absent.yaml]")
    found = verdict(render(tmp_path))
    assert [each.check for each in found.findings] == ["render"]
    assert "absent.yaml" in found.findings[0].message


def test_a_file_that_says_an_object_twice_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(f"{CONFIG_MAP}---\n{CONFIG_MAP}")
    (only,) = render_all([path])
    assert [each.rule for each in only.findings] == ["said-twice"]


def test_a_loose_file_may_name_what_an_overlay_makes(renders: dict[str, Render]) -> None:
    loose = [each.rendered for each in renders.values() if each.name.startswith("jobs/") and each.rendered]
    assert all(each.find("ConfigMap", "rag-stack-environment") for each in loose)
    assert renders["dev"].rendered is not None
    assert not renders["dev"].rendered.beside


def test_a_scheduled_build_on_a_volume_is_told_its_claim(renders: dict[str, Render]) -> None:
    overlay = renders["portworx-jobs"].rendered
    assert overlay is not None
    assert not list(file_root(overlay))
    documents = copy.deepcopy(overlay.documents)
    (schedule,) = [each for each in documents if each["kind"] == "CronJob"]
    for container in schedule["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]:
        container["env"] = [each for each in container["env"] if each["name"] != "ARTIFACTS_CLAIM"]
    assert "no volume is mounted" in str(list(file_root(Rendered("portworx-jobs", documents))))


def test_manifests_inside_a_config_map_are_documents_of_its_namespace() -> None:
    holder = {
        "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "here"},
        "data": {"job.yaml": "apiVersion: ray.io/v1\nkind: RayJob\nmetadata: {generateName: a-}\n", "b": "kind: no"},
    }
    (inside,) = embedded((holder,))
    assert inside["metadata"] == {"namespace": "here", "generateName": "a-"}


class TestDefinitionSchema:
    """The API server's reading of a definition's schema, in JSON Schema's words."""

    @pytest.mark.parametrize(
        ("schema", "value", "valid"),
        [
            ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": "b"}, True),
            ({"type": "object", "properties": {"a": {"type": "string"}}}, {"b": "b"}, False),
            ({"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True}, {"b": 1}, True),
            ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, "5m", True),
            ({"x-kubernetes-int-or-string": True}, 1.5, False),
            ({"type": "string", "nullable": True}, None, True),
            ({"type": "string"}, None, False),
            (
                {
                    "type": "object",
                    "properties": {"a": {}, "b": {}},
                    "oneOf": [{"properties": {"a": {}}, "required": ["a"]}],
                },
                {"a": 1, "b": 2},
                True,
            ),
            ({"type": "object", "additionalProperties": {"type": "integer"}}, {"any": "text"}, False),
        ],
    )
    def test_as_json_schema(self, schema: dict[str, Any], value: Any, valid: bool) -> None:
        assert jsonschema_rs.is_valid(crd_schema.as_json_schema(schema), value) is valid

    def test_defaults_are_there_before_it_is_judged(self) -> None:
        inner = {"properties": {"mode": {"default": "DenyAll"}}, "required": ["mode"]}
        schema = {"properties": {"items": {"type": "array", "items": inner}, "plain": {}}}
        assert crd_schema.with_defaults({"items": [{}, {"mode": "x"}]}, schema) == {
            "items": [{"mode": "DenyAll"}, {"mode": "x"}]
        }

    def test_a_rule_about_a_change_is_not_asked_of_what_is_new(self) -> None:
        rules = [{"rule": "self == oldSelf"}, {"rule": "size(self.name) > 2", "message": "too short"}]
        assert list(cel_rule.broken({"name": "ab"}, {"x-kubernetes-validations": rules})) == [("", "too short")]

    def test_a_field_that_is_a_word_of_the_language(self) -> None:
        schema = {"x-kubernetes-validations": [{"rule": "has(self.__namespace__)", "message": "no namespace"}]}
        assert list(cel_rule.broken({"namespace": "a"}, schema)) == []
        assert list(cel_rule.broken({"name": "a"}, schema)) == [("", "no namespace")]


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_a_selector(selector: dict[str, Any], holds: bool) -> None:
    assert matches(selector, {"a": "1"}) is holds


class TestExpression:
    """What is read of PromQL."""

    def test_series_of_ours_and_their_matchers(self) -> None:
        text = 'sum by (a) (rate(rag_stack:x{b="(", c=~\'d|e\'}[5m])) / on (f) rag_stack_y > up{g="rag_stack_z"}'
        found = [(each.name, [(one.label, one.value) for one in each.matchers]) for each in selectors(text)]
        assert found == [("rag_stack:x", [("b", "("), ("c", "d|e")]), ("rag_stack_y", [])]

    def test_names_by_a_pattern(self) -> None:
        (only,) = selectors('sum ({__name__=~"ray_rag_stack_(a|b)", c="d"})')
        assert only.is_pattern
        assert [each.label for each in only.matchers] == ["c"]

    def test_groupings_and_what_they_group(self) -> None:
        found = list(groupings('sum by (a, b) (x{c=")"}) / on (a) max (y) by (d)'))
        assert [(each.word, each.labels) for each in found] == [("by", ("a", "b")), ("on", ("a",)), ("by", ("d",))]
        assert found[0].operand == '(x{c=")"})'

    @pytest.mark.parametrize(
        ("matcher", "holds"),
        [
            ('="peer"', True),
            ('="origin"', False),
            ('=~"peer|mirror"', True),
            ('=~"peer|origin"', False),
            ('=~"$s"', True),
        ],
    )
    def test_values_that_a_label_takes(self, matcher: str, holds: bool) -> None:
        expression = f"ray_rag_stack_artifact_load_bytes_total{{source{matcher}}}"
        assert list(impossible_values(expression)) is not holds

    def test_the_alerts_are_tried_with_series_that_can_occur(self) -> None:
        cases = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
        told = [each["series"] for case in cases for each in case["input_series"]]
        assert told
        assert not [wrong for each in told for wrong in impossible_values(each)]


def test_a_document_without_its_shape_is_a_finding_and_no_crash() -> None:
    broken = Rendered("odd", ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": []},))
    assert {each.check for each in verdict(Render("odd", broken)).findings} >= {"core"}


def test_the_table() -> None:
    finding = Finding("dev", "rbac", "wide-rights", "Role/a", "verbs has '*': list what is needed")
    out = io.StringIO()
    rows = [Verdict("dev", (finding,), frozenset({"crd", "cel"}), ("Gateway.gateway.networking.k8s.io",))]
    print_report(rows, Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    (row,) = [line for line in lines if line.startswith("│ dev")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["dev", *("1" if name == "rbac" else "-" if name in ("crd", "cel") else "✓" for name in _columns())]
    assert str(finding) in lines
    assert "skipped (needs ../shared/crds): cel, crd" in lines
    assert any("Gateway" in line and "not checked" in line for line in lines)


def test_without_definitions_their_checks_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    # The folder lies beside the checkout, and a test cannot move that.
    monkeypatch.setattr(crd_schema, "_PLACES", [])
    odd = Rendered("odd", ({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"x": 1}},))
    found = verdict(Render("odd", odd), [each for each in CHECKS if each.needs_definitions])
    assert found.skipped == {"crd", "cel"}
    assert found.findings == ()


def test_names() -> None:
    assert short_name(KUBERAY / "overlays" / "dev") == "dev"
    assert short_name(Path("/elsewhere/mine")) == "mine"


def _columns() -> list[str]:
    return ["render", *(each.name for each in CHECKS)]
