"""SeaweedFS as an S3 server that knows conditional writes: one program, from one wheel."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.s3_server import KEY, SECRET, S3Server, environment
from tests.daemon import daemon, free_ports, program

# As many as the test run could need: a bucket takes seven.
_VOLUMES = 200
_VOLUME_MB = 64


@contextmanager
def serve_seaweed(directory: Path) -> Iterator[S3Server]:
    """Serve objects that are kept below a directory. The buckets are no folders in it."""
    directory.mkdir(parents=True, exist_ok=True)
    identities = directory / "identities.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities.write_text(
        json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})
    )
    servers = ("master", "volume", "filer", "s3")
    ports = iter(free_ports(2 * len(servers)))
    command = [str(program("weed")), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for server in servers:
        port, grpc = next(ports), next(ports)
        command += [f"-{server}.port={port}", f"-{server}.port.grpc={grpc}"]
    command += ["-filer", "-s3", f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-volume.max={_VOLUMES}", f"-master.volumeSizeLimitMB={_VOLUME_MB}", "-volume.minFreeSpace=100MiB"]
    command += ["-master.electionTimeout=1s", "-master.telemetry=false", "-volume.preStopSeconds=0"]
    url = f"http://127.0.0.1:{port}"
    with daemon(command, says="Start Seaweed S3 API Server") as process:
        yield S3Server(url, directory, process.pid, environment(url))
