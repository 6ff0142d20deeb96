"""Ceph's S3 server, from Debian's packages: one monitor, one OSD on a sparse file and one gateway, all ours alone."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from loadtests.s3_server import KEY, SECRET, S3Server, environment
from tests.daemon import daemon, free_ports, program

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_COMMAND_TIMEOUT_S = 60.0
_DISK_BYTES = 12 * 1024**3
_CONFIG = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}]
keyring = {directory}/$name.keyring
run_dir = {directory}
log_file = {directory}/$name.log
admin_socket =
pid_file =
crash_dir = {directory}
public_network = 127.0.0.0/8
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
setuser_match_path =
mon_data = {directory}/mon
osd_data = {directory}/osd
osd_objectstore = bluestore
bluestore_block_size = {disk_bytes}
bluestore_block_db_create = false
bluestore_block_wal_create = false
osd_class_load_list = *
osd_memory_target = 939524096
rgw_data = {directory}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw_dynamic_resharding = false
rgw_enable_usage_log = false
"""


@contextmanager
def serve_radosgw(directory: Path) -> Iterator[S3Server]:
    """Serve objects that are kept below a directory. Takes some 20 seconds to start."""
    fsid, (mon_port, rgw_port) = str(uuid4()), free_ports(2)
    for folder in ("mon", "osd", "rgw"):
        (directory / folder).mkdir(parents=True)
    config = directory / "ceph.conf"
    fields = {"fsid": fsid, "directory": directory, "mon_port": mon_port, "rgw_port": rgw_port}
    config.write_text(_CONFIG.format(**fields, disk_bytes=_DISK_BYTES))
    run = _Commands(directory, config)
    monitor_map = run.monitor(fsid, mon_port)
    with daemon([*run.named("ceph-mon", "-i", "a"), "-f", "-d"], says="mgrmap e1"):
        run.osd(monitor_map)
        with daemon([*run.named("ceph-osd", "-i", "0"), "-f", "-d"], says="done with init, starting boot process"):
            run.key("client.rgw", mon="allow rw", osd="allow rwx")
            gateway = [*run.named("radosgw", "-n", "client.rgw"), "-f", "-d"]
            with daemon(gateway, says="starting handler: beast") as process:
                user = ("--uid", "test", "--display-name", "test", "--access-key", KEY, "--secret", SECRET)
                run("radosgw-admin", "user", "create", *user)
                url = f"http://127.0.0.1:{rgw_port}"
                yield S3Server(url, directory, process.pid, environment(url))


class _Commands:
    """Ceph's own commands, for one cluster."""

    def __init__(self, directory: Path, config: Path) -> None:
        self._directory = directory
        self._config = config

    def __call__(self, name: str, *arguments: str) -> str:
        """Run one to its end; what it printed. Raises RuntimeError with what it complained of."""
        done = subprocess.run(
            self.named(name, *arguments), capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def named(self, name: str, *arguments: str) -> list[str]:
        return [str(program(name)), "-c", str(self._config), *arguments]

    def monitor(self, fsid: str, port: int) -> Path:
        """Make the monitor's data; the map of the one monitor."""
        monitor_map, keys = self._directory / "monmap", self._directory / "mon.keys"
        admin = self._directory / "client.admin.keyring"
        allow_all = [part for daemon in ("mon", "osd", "mds") for part in ("--cap", daemon, "allow *")]
        self._plain("ceph-authtool", "--create-keyring", str(keys), "--gen-key", "-n", "mon.", *allow_all[:3])
        self._plain("ceph-authtool", "--create-keyring", str(admin), "--gen-key", "-n", "client.admin", *allow_all)
        self._plain("ceph-authtool", str(keys), "--import-keyring", str(admin))
        address = f"[v2:127.0.0.1:{port}]"
        self._plain("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, str(monitor_map))
        self("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(monitor_map), "--keyring", str(keys))
        return monitor_map

    def osd(self, monitor_map: Path) -> None:
        """Register the OSD and make its disk, a sparse file."""
        identity = str(uuid4())
        self("ceph", "osd", "new", identity, "0")
        self.key("osd.0", mon="allow profile osd", osd="allow *")
        self("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity, "--monmap", str(monitor_map))

    def key(self, name: str, **capabilities: str) -> None:
        """Make a key, where its owner looks for it."""
        allowed = [part for capability in capabilities.items() for part in capability]
        self("ceph", "auth", "get-or-create", name, *allowed, "-o", str(self._directory / f"{name}.keyring"))

    def _plain(self, name: str, *arguments: str) -> None:
        subprocess.run([str(program(name)), *arguments], capture_output=True, check=True, timeout=_COMMAND_TIMEOUT_S)
