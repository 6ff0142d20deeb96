"""Execute a Dockerfile's steps where no container engine is: `python -m deploy.images.run_steps FILE --scratch DIR`.

Each stage is a folder, and each RUN a chroot into it with mounts of its own. In place of the base image stands
debootstrap's Debian of the same name, with Debian's own Python 3.11: so the steps, the system packages, the lock and
what they leave behind are checked, and the base image and the engine are not. Needs root and debootstrap.
pip finds packages as on this machine: what `pip config list` says goes in as PIP_ variables, and local folders named
there are mounted.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.images.dockerfile import Dockerfile, Instruction, Stage, expand, pairs, parse

SUITE: Final = "bookworm"
# What the base image brings that debootstrap's smallest variant does not.
BASE_PACKAGES: Final = "ca-certificates,python3.11,python3.11-venv,python3-pip"
CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Shell fragments that all have to succeed in the finished image as its user, read-only or not.
CHECKS: Final = {
    "user": 'test "$(id -u):$(id -g)" = 1000:1000',
    "home": 'test "$HOME" = /home/ray && test -d "$HOME"',
    "version": "rag-stack version",
    "ray": "ray --version",
    "serve": "serve --help >/dev/null",
    "login shell": "bash -lc 'command -v ray serve rag-stack'",
    "probes": "wget --version >/dev/null && command -v grep bash",
    "imports": "python -c 'import faiss, ray.serve.llm, torch, vllm; print(faiss.__version__, torch.__version__)'",
    # `import vllm` only warns where they cannot be loaded.
    "kernels": (
        "python -c 'import torch; from vllm.platforms.cpu import CpuPlatform; "
        "CpuPlatform.import_kernels(); print(torch.ops._C.silu_and_mul)'"
    ),
    "haproxy": 'test -x "$RAY_SERVE_HAPROXY_BINARY_PATH" && "$RAG_STACK_HAPROXY" -v | head -n 1',
    "haproxy through its script": '"$RAY_SERVE_HAPROXY_BINARY_PATH" -v >/dev/null',
    "launch": "test -x /opt/rag-stack/lib/python3.11/site-packages/rag_stack/generation/launch",
    "not writable": 'test -z "$(find /opt/rag-stack -writable ! -type l -print -quit)"',
    "no compiler": "! command -v cc gcc g++",
    "no pip": "! test -e /opt/rag-stack/bin/pip",
    "compiled": (
        "python -c 'import compileall, importlib.util as u, pathlib, sysconfig; "
        'files = list(pathlib.Path(sysconfig.get_path("purelib")).rglob("*.py")); '
        "bare = [f for f in files if not pathlib.Path(u.cache_from_source(str(f))).exists()]; "
        'print(len(files), "files,", len(bare), "without .pyc:", *bare[:5]); '
        "assert len(bare) <= len(files) // 1000'"
    ),
}


@dataclass(slots=True)
class Run:
    """The stages that were executed so far, each in its folder below `scratch`."""

    file: Dockerfile
    context: Path
    scratch: Path
    base: Path
    variables: dict[str, dict[str, str]] = field(default_factory=dict)

    def stage(self, name: str) -> Path:
        """Execute a stage, and before it those it needs; return its root."""
        root = self.scratch / name
        if root.exists():
            return root
        stage = self.file.stage(name)
        names = {one.name for one in self.file.stages}
        parent = self.stage(stage.base) if stage.base in names else self.base
        _copy(parent, root)
        self.variables[name] = dict(self.variables.get(stage.base, {"PATH": PATH, "HOME": "/root"}))
        directory = "/"
        for one in stage.instructions:
            directory = self._execute(stage, root, one, directory)
        return root

    def check(self, name: str, fragment: str) -> str:
        """Run a shell fragment in a finished stage as its user; what it printed. CalledProcessError where it fails."""
        stage = self.file.stage(name)
        user = stage.of("USER")[-1].value
        return _chroot(self.stage(name), fragment, self.variables[name], directory="/home/ray", user=user)

    def _execute(self, stage: Stage, root: Path, one: Instruction, directory: str) -> str:
        """One instruction; returns the working directory after it."""
        variables = self.variables[stage.name]
        started = time.monotonic()
        match one.keyword:
            case "ARG":
                key, _, default = one.value.partition("=")
                variables.setdefault(key, self.file.arguments.get(key, default))
            case "ENV":
                variables.update(pairs(expand(one.value, variables)))
            case "WORKDIR":
                directory = one.value
                (root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy_in(root, one, directory)
            case "RUN":
                _chroot(root, one.value, {**pip_environment(), **variables}, directory, mounts=self._mounts(one))
            case "USER" | "LABEL" | "CMD":
                pass
            case _:
                raise ValueError(
                    f"line {one.line}: {one.keyword} is not executed here; expected one that is, see above"
                )
        print(f"{stage.name}:{one.line} {one.keyword} {time.monotonic() - started:.1f} s", flush=True)
        return directory

    def _mounts(self, one: Instruction) -> dict[str, str]:
        mounts = {path: path for path in local_paths()}
        for name, value in one.flags:
            options = dict(option.split("=", 1) for option in value.split(","))
            if name != "mount" or options["type"] != "bind":
                raise ValueError(f"line {one.line}: expected --mount=type=bind, got --{name}={value}")
            mounts[str(self.stage(options["from"]) / options["source"].lstrip("/"))] = options["target"]
        return mounts

    def _copy_in(self, root: Path, one: Instruction, directory: str) -> None:
        *sources, target = one.value.split()
        origin = self.stage(dict(one.flags)["from"]) if "from" in dict(one.flags) else self.context
        into = root / os.path.join(directory, target).lstrip("/")  # noqa: PTH118  `target` may be absolute
        folder = into if target.endswith(("/", ".")) else into.parent
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy2(path, into)


def pip_configuration() -> dict[str, str]:
    """What `pip config list` says on this machine, whichever file or variable says it."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = " ".join(shlex.split(value)).strip()
    return found


def pip_environment() -> dict[str, str]:
    """The same as PIP_ variables."""
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in pip_configuration().items()}


def local_paths() -> list[str]:
    """Folders and files of this machine that pip's configuration names, and what the network needs."""
    words = [word for value in pip_configuration().values() for word in value.split()]
    # An index's pages name its files by paths relative to them.
    indexes = [str(Path(word.removeprefix("file://")).parent) for word in words if word.startswith("file://")]
    wanted = [*words, *indexes, CERTIFICATES, "/etc/resolv.conf", "/etc/hosts"]
    return sorted({path for path in wanted if path.startswith("/") and Path(path).exists()})


def debian(root: Path) -> Path:
    """What stands for the base image."""
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, str(root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return root


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--archive", "--reflink=auto", str(source), str(target)], check=True)


def _chroot(
    root: Path,
    command: str,
    environment: dict[str, str],
    directory: str = "/",
    *,
    user: str = "0:0",
    mounts: dict[str, str] | None = None,
) -> str:
    """Run a command in a root folder, in a mount namespace that goes with it; returns what it printed."""
    script = [
        "set -e",
        f"mount -t proc proc {root}/proc",
        # vLLM asks lscpu and /sys which cores and how much memory there are.
        f"mount -t sysfs -o ro sysfs {root}/sys",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs tmpfs {root}/tmp",
    ]
    for source, target in (mounts or {}).items():
        inside = root / target.lstrip("/")
        make = "mkdir -p" if Path(source).is_dir() else f"mkdir -p {shlex.quote(str(inside.parent))} && touch"
        script += [
            f"{make} {shlex.quote(str(inside))}",
            f"mount --bind {shlex.quote(source)} {shlex.quote(str(inside))}",
        ]
    inner = f"umask 022; cd {directory} && {command}"
    variables = [f"{name}={value}" for name, value in environment.items()]
    arguments: Sequence[str] = [
        "chroot",
        f"--userspec={user}",
        str(root),
        "env",
        "-i",
        *variables,
        "/bin/bash",
        "-c",
        inner,
    ]
    script.append(f"exec {shlex.join(arguments)}")
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", "\n".join(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"expected exit code 0, got {done.returncode} from: {command}\n{done.stdout[-4000:]}")
    return done.stdout.strip()


def main() -> int:
    """Execute the steps, then the checks; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder on a disk with 8 GB free")
    parser.add_argument("--target", default="server")
    parser.add_argument("--base", type=Path, help="a root folder made by debootstrap before")
    given = parser.parse_args()
    base = given.base or debian(given.scratch / "base")
    run = Run(parse(given.file), Path.cwd(), given.scratch, base)
    run.stage(given.target)
    failed = 0
    for name, fragment in CHECKS.items():
        try:
            print(f"{name}: {run.check(given.target, fragment) or 'ok'}", flush=True)
        except RuntimeError as error:
            failed += 1
            print(f"{name}: FAILED {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
