"""A real S3 server on this machine: rclone, from one wheel, over a directory whose sub-folders are its buckets."""

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 30.0
KEY, SECRET = "testkey1", "testsecret1"
_LISTENS = re.compile(r"s3 server on \[?(http://127\.0\.0\.1:\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; `environment` is what a client's process needs, buckets are the folders of `directory`."""

    url: str
    directory: Path
    process_id: int
    environment: Mapping[str, str] = field(repr=False)

    def bytes_sent(self) -> int:
        """Bytes that the server has written so far, by the kernel's count: answers, their headers, and uploads."""
        text = Path(f"/proc/{self.process_id}/io").read_text(encoding="ascii")
        return int(dict(line.split(": ") for line in text.splitlines())["wchar"])


@contextmanager
def serve_s3(directory: Path) -> Iterator[S3Server]:
    """Serve a directory on a free port of the loopback interface until the block ends."""
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", "/dev/null"]
    # What is put there past the server shall be seen at once; with 0 it looks at some new folders without an end.
    options = ["--auth-key", f"{KEY},{SECRET}", "--addr", "127.0.0.1:0", "--dir-cache-time", "1ms"]
    # A real store keeps an object's ETag; this one would read and hash the whole file for each request on it.
    options += ["--etag-hash", ""]
    directory.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [*command, *options, str(directory)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    said: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_drain, args=(process, said), name="s3-server-log")
    reader.start()
    try:
        url = _url(said)
        yield S3Server(url, directory, process.pid, environment(url))
    finally:
        process.terminate()
        process.wait(10)
        reader.join()


def _url(said: "queue.Queue[str | None]") -> str:
    lines: list[str] = []
    while (line := said.get(timeout=START_TIMEOUT_S)) is not None:
        lines.append(line)
        if found := _LISTENS.search(line):
            return found.group(1)
    raise RuntimeError(f"the S3 server ended: {''.join(lines)}")


def _drain(process: "subprocess.Popen[str]", said: "queue.Queue[str | None]") -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            said.put(line)
    said.put(None)


def environment(url: str) -> dict[str, str]:
    """What a client's process needs to reach a server on this machine that knows KEY and SECRET."""
    # No proxy of this machine's shall stand between client and server.
    direct = {name: "127.0.0.1,localhost" for name in ("no_proxy", "NO_PROXY") if os.environ.get("http_proxy")}
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **direct,
    }
