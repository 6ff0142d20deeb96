"""The activator's manifests: rendered, valid, allowed what the code asks and no more, and agreeing with the flags."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rag_stack.activator import door
from rag_stack.activator.permissions import permissions
from rag_stack.activator.settings import Settings
from rag_stack.serving.prefixes import ADMIN_APP, FILES_APP, PREFIXES, SEARCH_APP

COMPONENT = Path(__file__).parents[3] / "deploy/kuberay/components/activator"
KUBECTL = Path(sys.executable).parent / "kubectl"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Through an overlay that has nothing else. Kustomize wants relative paths."""
    overlay = tmp_path_factory.mktemp("overlay")
    (overlay / "activator").symlink_to(COMPONENT)
    for file in COMPONENT.glob("*.yaml"):
        (overlay / "component").mkdir(exist_ok=True)
        (overlay / "component" / file.name).write_text(file.read_text())
    (overlay / "kustomization.yaml").write_text("components: [component]\nnamespace: elsewhere\n")
    done = subprocess.run([KUBECTL, "kustomize", overlay], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(rendered: list[dict[str, Any]], kind: str, name: str = "rag-stack-activator") -> dict[str, Any]:
    (found,) = [each for each in rendered if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def test_every_object_is_valid_and_can_be_moved_to_another_namespace(rendered: list[dict[str, Any]]) -> None:
    for each in rendered:
        kubernetes_validate.validate(each, "1.37", strict=True)
        assert each["metadata"]["namespace"] == "elsewhere"
    assert one(rendered, "RoleBinding")["subjects"][0]["namespace"] == "elsewhere"
    kinds = sorted(each["kind"] for each in rendered)
    assert kinds == [
        "Deployment",
        "NetworkPolicy",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ]


def test_the_role_is_what_the_code_asks(rendered: list[dict[str, Any]]) -> None:
    env = environment(rendered)
    asked = permissions(service=env["RAG_STACK_SERVICE"], lease=env["RAG_STACK_LEASE"])
    assert one(rendered, "Role")["rules"] == [each.rule() for each in asked]
    binding = one(rendered, "RoleBinding")
    assert binding["roleRef"]["name"] == one(rendered, "Role")["metadata"]["name"]
    pod = one(rendered, "Deployment")["spec"]["template"]["spec"]
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    assert one(rendered, "ServiceAccount")["metadata"]["name"] == pod["serviceAccountName"]
    assert pod["automountServiceAccountToken"] is True


def environment(rendered: list[dict[str, Any]]) -> dict[str, str]:
    (container,) = one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_the_pod_is_restricted(rendered: list[dict[str, Any]]) -> None:
    pod = one(rendered, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_ports_labels_and_times_agree(rendered: list[dict[str, Any]]) -> None:
    deployment, service = one(rendered, "Deployment"), one(rendered, "Service", "rag-stack")
    pod, labels = deployment["spec"]["template"]["spec"], deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    defaults = Settings(namespace="a", service="b", identity="c", upstream="d")
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == {
        "http": defaults.port,
        "ops": defaults.ops_port,
    }
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = one(rendered, kind)["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == labels
    let_in = one(rendered, "NetworkPolicy", "rag-stack-from-activator")["spec"]["ingress"][0]["from"]
    assert let_in == [{"podSelector": {"matchLabels": labels}}]
    env = environment(rendered)
    stays_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + float(env["RAG_STACK_DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] > stays_s + 10
    memory_bytes = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    assert int(env["RAG_STACK_HOLD_BYTES"]) * 2 <= memory_bytes


def test_every_variable_is_one_that_the_program_reads(rendered: list[dict[str, Any]]) -> None:
    program = (COMPONENT.parents[3] / "rag_stack/activator/__main__.py").read_text()
    for name in environment(rendered):
        assert f'envvar="{name}"' in program or name == "PYTHONDONTWRITEBYTECODE", name


def test_the_door_knows_the_routes_of_the_server() -> None:
    assert set(door.PREFIXES) == {PREFIXES[ADMIN_APP], PREFIXES[FILES_APP], PREFIXES[SEARCH_APP]}
