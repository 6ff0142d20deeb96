"""Opt-in: what a real API server says, by a server-side dry run with the current kubeconfig.

Not part of the static checks, and not run where there is no cluster. The server needs the custom resource definitions
and the namespace; nothing is stored.
"""

import subprocess

import yaml

from deploy.verify.render import Render, kubectl
from deploy.verify.rendered import Finding

_LIMIT_S = 120


def dry_run(render: Render) -> list[Finding]:
    """The server's refusals of one overlay."""
    if render.rendered is None:
        return list(render.findings)
    command = [kubectl(), "apply", "--server-side", "--dry-run=server", "--filename", "-"]
    done = subprocess.run(
        command,
        input=yaml.safe_dump_all(render.rendered.documents),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode == 0:
        return []
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return [Finding(render.name, "server", "dry-run", render.name, line) for line in lines]
