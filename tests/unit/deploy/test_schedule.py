"""The CronJob's pod: creates a RayJob as its Job's own, waits for its end and ends as it did."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError

import pytest
import yaml

JOBS = Path(__file__).parents[3] / "deploy" / "kuberay" / "jobs"
PATH = "/apis/ray.io/v1/namespaces/rag-stack/rayjobs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("create_rayjob", JOBS / "create_rayjob.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Api:
    """Stands for the API server: one RayJob, whose states it tells one after the other, the last again and again."""

    states: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    created: dict[str, Any] | None = None
    tokens: set[str] = field(default_factory=set)
    create_code: int = 201
    url: str = ""

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        if method == "POST":
            if self.created is not None:
                return 409, {"reason": "AlreadyExists"}
            if path == PATH and self.create_code == 201:
                self.created = body
            return self.create_code, body or {}
        assert self.created is not None
        assert path == f"{PATH}/{self.created['metadata']['name']}"
        code, status = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return code, {**self.created, "status": status}


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any] | None) -> None:
            api.tokens.add(self.headers["Authorization"])
            code, answer = api.answer(self.command, self.path, body)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    yield api
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(script: ModuleType, api: Api, tmp_path: Path) -> Any:
    token = tmp_path / "token"
    token.write_text("secret\n")
    rayjob = script.rayjob_of(JOBS / "index-rebuild.yaml", script.Owner("index-rebuild-29734560", "a-uid"))
    rayjobs = script.RayJobs(api.url, "rag-stack", token=token, ca=None)
    return lambda: script.run(rayjobs, rayjob, poll_s=0.0)


def test_the_rayjob_is_its_jobs_own(run: Any, api: Api) -> None:
    api.states = [(200, {}), (200, {"jobDeploymentStatus": "Running"}), (200, _ended("Complete", "SUCCEEDED"))]
    assert run() == 0
    assert api.created is not None
    metadata = api.created["metadata"]
    assert metadata["name"] == "index-rebuild-29734560"
    assert len(metadata["name"]) <= 47
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "index-rebuild-29734560", "uid": "a-uid"}
    assert metadata["ownerReferences"] == [owner]
    assert api.created["spec"]["entrypoint"].startswith("rag-stack index build")
    assert api.tokens == {"Bearer secret"}


def test_its_pods_mount_the_artifacts_where_they_lie_on_a_volume(script: ModuleType) -> None:
    owner = script.Owner("index-rebuild-29734560", "a-uid")
    cluster = script.rayjob_of(JOBS / "index-rebuild.yaml", owner, claim="rag-stack-artifacts")["spec"][
        "rayClusterSpec"
    ]
    pods = [cluster["headGroupSpec"]["template"]["spec"], *(g["template"]["spec"] for g in cluster["workerGroupSpecs"])]
    assert len(pods) == 2
    for number, pod in enumerate(pods):
        assert {"name": "artifacts", "persistentVolumeClaim": {"claimName": "rag-stack-artifacts"}} in pod["volumes"]
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "artifacts"]
        assert mount["mountPath"] == "/artifacts"
        assert mount.get("readOnly", False) is (number > 0)


def test_a_failed_build_fails_the_job(run: Any, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.states = [(200, {**_ended("Failed", "FAILED"), "message": "min_recall: 0.81"})]
    assert run() == 1
    assert "min_recall: 0.81" in capsys.readouterr().out


def test_a_second_pod_of_the_job_waits_for_the_same_rayjob(run: Any, api: Api) -> None:
    api.states = [(200, _ended("Complete", "SUCCEEDED"))]
    assert run() == 0
    first = api.created
    assert run() == 0
    assert api.created is first


def test_an_api_server_that_is_away_for_a_while_ends_nothing(run: Any, api: Api) -> None:
    api.states = [(503, {}), (500, {}), (200, _ended("Complete", "SUCCEEDED"))]
    assert run() == 0


def test_who_deletes_the_rayjob_ends_the_wait(run: Any, api: Api) -> None:
    api.states = [(404, {})]
    with pytest.raises(HTTPError, match="404"):
        run()


def test_who_may_not_create_it_hears_so(run: Any, api: Api) -> None:
    api.create_code = 403
    with pytest.raises(HTTPError, match="403"):
        run()


def test_the_role_has_what_the_script_asks_and_no_more() -> None:
    documents = list(yaml.safe_load_all((JOBS / "schedule.yaml").read_text()))
    (role,) = [each for each in documents if each["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    (cron,) = [each for each in documents if each["kind"] == "CronJob"]
    # The Job's name is the CronJob's, a dash and minutes since 1970.
    assert len(cron["metadata"]["name"]) + len("-29734560") <= 47
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


def _ended(deployment: str, job: str) -> dict[str, Any]:
    return {"jobDeploymentStatus": deployment, "jobStatus": job}
