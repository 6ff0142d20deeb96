"""`python -m deploy.verify [OVERLAY...]`: a table of overlays and checks; exit code 1 with any finding."""

import argparse
import logging
import sys
import time
from pathlib import Path

from rich.console import Console

from deploy.verify.check import verdicts
from deploy.verify.mistakes import print_mistakes
from deploy.verify.render import KUBERAY, render_all, targets
from deploy.verify.server import dry_run
from deploy.verify.table import print_report


def main(arguments: list[str] | None = None) -> int:
    """Render, check, report."""
    options = _parser().parse_args(arguments)
    # vLLM and Ray say much while they are imported.
    logging.disable(logging.WARNING)
    console = Console(width=140 if not sys.stdout.isatty() else None)
    began = time.monotonic()
    try:
        renders = render_all([_path(each) for each in options.overlay] or targets())
    except FileNotFoundError as exc:
        console.print(f"[red]{exc}[/red]")
        return 2
    if options.mistakes:
        return print_mistakes(renders, console)
    if options.server:
        refused = [finding for each in renders for finding in dry_run(each)]
        for finding in refused:
            console.print(f"[red]{finding}[/red]", markup=True, soft_wrap=True)
        console.print(f"{len(renders)} overlays asked of the API server, {len(refused)} refusals")
        return int(bool(refused))
    found = verdicts(renders)
    print_report(found, console)
    count = sum(len(each.findings) for each in found)
    console.print(f"{len(found)} overlays and files, {count} findings, {time.monotonic() - began:.0f} s")
    return int(count > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.verify", description=__doc__)
    parser.add_argument(
        "overlay", nargs="*", help="a name such as `dev`, a folder or a file; all of them if none is given"
    )
    parser.add_argument("--mistakes", action="store_true", help="seed mistakes, and say how many are found")
    parser.add_argument(
        "--server", action="store_true", help="ask the current cluster's API server by a dry run instead"
    )
    return parser


def _path(text: str) -> Path:
    for path in (Path(text), KUBERAY / "overlays" / text, KUBERAY / text, KUBERAY / f"{text}.yaml"):
        if (path / "kustomization.yaml").is_file() or path.is_file():
            return path
    raise FileNotFoundError(f"{text!r} is neither an overlay, nor a folder with kustomization.yaml, nor a file")


if __name__ == "__main__":
    raise SystemExit(main())
