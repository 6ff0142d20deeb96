"""The RayJob that rebuilds an index: valid for the operator, and the command that it runs is one."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from deploy.verify.crd_schema import definition_of
from rag_stack.cli.index import app
from rag_stack.index.spec import IndexSpec

REPOSITORY = Path(__file__).parents[3]
MANIFEST = REPOSITORY / "deploy" / "kuberay" / "jobs" / "index-rebuild.yaml"


@pytest.fixture
def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def test_it_is_valid_for_the_operator(documents: dict[str, Any]) -> None:
    job = documents["RayJob"]
    definition = definition_of(job)
    if definition is None:
        pytest.skip("needs KubeRay's CRDs in ../shared/crds")
    assert not list(definition.complaints(job))
    assert list(definition.complaints({**job, "spec": {**job["spec"], "entryPoint": "typo"}}))


def test_what_the_operator_asks_beyond_its_schema(documents: dict[str, Any]) -> None:
    job = documents["RayJob"]
    assert len(job["metadata"]["name"]) <= 47
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_its_command_and_spec_are_ours(documents: dict[str, Any]) -> None:
    spec = IndexSpec.model_validate(yaml.safe_load(documents["ConfigMap"]["data"]["spec.yaml"]))
    assert spec.source.remote
    program, group, command, *arguments = shlex.split(documents["RayJob"]["spec"]["entrypoint"])
    assert (program, group, command) == ("rag-stack", "index", "build")
    build = get_command(app).commands[command]  # type: ignore[attr-defined]
    parsed = build.make_context("build", arguments)
    assert parsed.params["engine"] == "ray"
    head = documents["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [each for each in head["containers"][0]["volumeMounts"] if each["name"] == "spec"]
    assert str(parsed.params["spec_file"]) == f"{mount['mountPath']}/spec.yaml"
    (volume,) = [each for each in head["volumes"] if each["name"] == "spec"]
    assert volume["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
