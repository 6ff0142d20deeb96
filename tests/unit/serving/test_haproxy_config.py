"""What haproxy.sh makes of the configuration that Serve writes, checked by the real HAProxy."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig

from rag_stack.serving import environment
from rag_stack.serving.prefixes import PREFIXES


@pytest.fixture
def variables() -> dict[str, str]:
    """What a server's processes have in their environment."""
    variables = dict(os.environ)
    environment.prepare(variables)
    if "RAG_STACK_HAPROXY" not in variables:
        pytest.skip("no HAProxy comes with this Ray")
    return variables


def _server(name: str, port: int) -> ServerConfig:
    return ServerConfig(name=name, host="127.0.0.1", port=port, replica_id=name)


def _written(folder: Path, backends: dict[str, BackendConfig]) -> Path:
    """The file as Serve writes it."""
    file = folder / "haproxy.cfg"
    config = HAProxyConfig(socket_path=str(folder / "admin.sock"), metrics_socket_path=str(folder / "metrics.sock"))
    HAProxyApi(config, backends, config_file_path=str(file))._generate_config_file_internal()
    return file


def _backends() -> dict[str, BackendConfig]:
    engine = BackendConfig(
        name="http-engine",
        path_prefix="/",
        app_name="engine",
        servers=[_server("replica", 30001)],
        ingress_request_router_servers=[_server("router", 30002)],
        fallback_server=_server("proxy", 30003),
    )
    search = BackendConfig(
        name="http-search", path_prefix="/v1/vector_stores", app_name="search", servers=[_server("search", 30004)]
    )
    return {"http-engine": engine, "http-search": search}


def _start(file: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As Serve starts it, but only to look at the file."""
    command = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(file)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=30)


def test_the_router_is_asked_for_the_engine_alone(tmp_path: Path, variables: dict[str, str]) -> None:
    file = _written(tmp_path, _backends())
    done = _start(file, variables)
    assert done.returncode == 0, done.stderr
    (asked,) = re.findall(r"^ *http-request set-var\(txn.ingress_request_router_app\).*$", file.read_text(), re.M)
    assert asked.endswith("!rag_stack_unrouted")
    (unrouted,) = re.findall(r"^ *acl rag_stack_unrouted path_beg (.*)$", file.read_text(), re.M)
    assert unrouted.split() == list(PREFIXES.values())


def test_a_second_start_changes_nothing_more(tmp_path: Path, variables: dict[str, str]) -> None:
    file = _written(tmp_path, _backends())
    assert _start(file, variables).returncode == 0
    once = file.read_text()
    assert _start(file, variables).returncode == 0
    assert file.read_text() == once
    assert once.count("option http-buffer-request") == 1


def test_one_that_knows_no_application_says_when_to_ask_again(tmp_path: Path, variables: dict[str, str]) -> None:
    file = _written(tmp_path, {})
    done = _start(file, variables)
    assert done.returncode == 0, done.stderr
    assert "http-request return status 404" not in file.read_text()
    assert "Retry-After 5" in file.read_text()
