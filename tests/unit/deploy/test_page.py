"""The one page: the overlay that it shows is one that works, and what it names is there."""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from deploy.verify.check import verdict
from deploy.verify.pod_template import pod_templates
from deploy.verify.render import KUBERAY, render
from deploy.verify.rendered import namespace_of

PAGE = (KUBERAY / "README.md").read_text()


@pytest.fixture(params=[(), ("monitoring", "backup")], ids=["as it stands", "with monitoring and backup"])
def own_overlay(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (sample,) = re.findall(r"```yaml\n# my-stack/kustomization.yaml\n(.*?)```", PAGE, re.DOTALL)
    kustomization = yaml.safe_load(sample.replace("../rag_stack/deploy/kuberay", os.path.relpath(KUBERAY, tmp_path)))
    added = [os.path.relpath(KUBERAY / "components" / name, tmp_path) for name in request.param]
    kustomization["components"] += added
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    shutil.copy(KUBERAY / "overlays" / "single-gpu" / "serve.yaml", tmp_path)
    return tmp_path


def test_the_overlay_that_it_shows(own_overlay: Path) -> None:
    done = render(own_overlay)
    found = verdict(done).findings
    assert not found, "\n".join(map(str, found))
    assert done.rendered is not None
    (service,) = done.rendered.of("RayService")
    (engine,) = [g for g in service["spec"]["rayClusterConfig"]["workerGroupSpecs"] if g["groupName"] == "engine"]
    assert engine["maxReplicas"] == 5
    assert engine["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "96Gi"
    images = {c["image"] for pod in pod_templates(done.rendered) for c in pod.containers if "rag-stack" in c["image"]}
    assert images == {"registry.example/rag-stack:0.1.0", "registry.example/rag-stack-gpu:0.1.0"}
    assert all(namespace_of(each) == "velero" for each in done.rendered.of("Schedule"))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_what_it_links_is_there(target: str) -> None:
    assert (KUBERAY / target).exists()
