"""What `loadtests.node_loss` makes of its rounds, and what its relay counts and holds back."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from loadtests.node_loss import ARMS, Loss, build_report, draw, read_since
from loadtests.relay import relay

MANIFEST = "/bucket/artifacts/models/m/1/manifest.json"
WEIGHTS = "/bucket/artifacts/models/m/1/model.safetensors"
POINTER = "/bucket/artifacts/models/m/PROMOTED"
LOSS = Loss(0, ARMS[0].name, 0, 900, 1.0, 5.0, 9.0, 50, 3, 0, 1)


def test_content_is_told_from_names_and_pointers() -> None:
    before = {WEIGHTS: 100, POINTER: 5}
    after = {WEIGHTS: 150, POINTER: 10, MANIFEST: 7, "/bucket": 40}
    assert read_since(before, after) == (50, 52)


def test_the_goals_compare_neighbour_and_store_behind_the_same_line() -> None:
    losses = [
        LOSS,
        replace(LOSS, arm=ARMS[1].name, artifacts_s=4.0, content_bytes=500),
        replace(LOSS, arm=ARMS[2].name, artifacts_s=9.0),
        replace(LOSS, arm=ARMS[3].name, artifacts_s=0.5, content_bytes=500),
    ]
    result = build_report(losses, mbps=60, ms=15)
    assert result.goals["node_loss.origin_bytes"].value == 0
    assert result.goals["node_loss.time_vs_reload_from_store"].value == 0.25
    draw(losses)


def test_a_chunk_of_the_origin_misses_the_goal() -> None:
    losses = [replace(LOSS, content_bytes=1), replace(LOSS, arm=ARMS[1].name)]
    assert not build_report(losses, mbps=60, ms=15).goals["node_loss.origin_bytes"].met


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"x" * 200_000
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_relay_says_what_was_read_of_which_object_and_keeps_to_its_rate() -> None:
    with _server() as url, relay(url) as line, httpx.Client(trust_env=False, base_url=line.url) as client:
        client.get("/one?part=1")
        client.get("/two")
        assert {path: size > 200_000 for path, size in line.sent_by_path().items()} == {"/one": True, "/two": True}
        line.limit(1_000_000)
        began_s = time.monotonic()
        client.get("/one")
        assert time.monotonic() - began_s >= 0.19
        line.limit(0)
        with pytest.raises(httpx.HTTPError):
            client.get("/one")
        line.limit(None)
        assert client.get("/one").status_code == 200
