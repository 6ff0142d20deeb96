"""The RayJob that rebuilds an index: valid for the operator, and the command that it runs is one."""

import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from rag_stack.cli.index import app
from rag_stack.index.spec import IndexSpec

REPOSITORY = Path(__file__).parents[3]
MANIFEST = REPOSITORY / "deploy" / "kuberay" / "jobs" / "index-rebuild.yaml"
# Beside the checkout, or beside the folder that holds several.
CRDS = [parent / "shared" / "crds" / "rayjobs.ray.io.yaml" for parent in REPOSITORY.parents]


@pytest.fixture
def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def test_it_is_valid_for_the_operator(documents: dict[str, Any]) -> None:
    path = next((each for each in CRDS if each.is_file()), None)
    if path is None:
        pytest.skip("needs KubeRay's CRDs in ../shared/crds")
    (version,) = [each for each in yaml.safe_load(path.read_text())["spec"]["versions"] if each["storage"]]
    schema = _closed(version["schema"]["openAPIV3Schema"])
    job = documents["RayJob"]
    assert job["apiVersion"] == f"ray.io/{version['name']}"
    jsonschema.validate(job, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "spec": {**job["spec"], "entryPoint": "typo"}}, schema)


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


def _closed(schema: Any) -> Any:
    """A CRD's schema as the API server takes it: unknown fields are errors, and some integers may be text."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key != "format"}
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    elif schema.get("nullable") and isinstance(schema.get("type"), str):
        closed["type"] = [schema["type"], "null"]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("properties") and not open_ended:
        closed["additionalProperties"] = False
    return closed
