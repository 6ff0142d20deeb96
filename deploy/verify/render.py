"""Renders overlays with kustomize, and reads the files that are applied as they are."""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from deploy.verify.rendered import Document, Finding, Rendered, embedded

KUBERAY: Final = Path(__file__).parents[1] / "kuberay"
# What loose files are applied beside: the first of these that is there.
_GROUNDS: Final = ("overlays/single-gpu", "overlays/dev")
# But for these.
_OWN_GROUNDS: Final = {"jobs/cache-warm": "overlays/nvme"}
# No overlay: what all of them are made of.
_BASE: Final = "base"
_OVERLAYS: Final = "overlays"
_AT_ONCE: Final = 2
_LIMIT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Render:
    """An overlay as it came out of kustomize, or why nothing did."""

    name: str
    rendered: Rendered | None
    findings: tuple[Finding, ...] = ()


def targets(root: Path = KUBERAY) -> list[Path]:
    """All that can be applied below a directory: the overlays, other kustomizations, then the loose manifests."""
    found = {path.parent: path.read_text(encoding="utf-8") for path in sorted(root.rglob("kustomization.yaml"))}
    applied = [path for path, text in found.items() if path != root / _BASE and not _is_component(text)]
    loose = [path for path in sorted(root.rglob("*.yaml")) if _is_loose(path, found) and _is_manifest(path)]
    return [*sorted(applied, key=lambda path: path.parent != root / _OVERLAYS), *loose]


def render_all(paths: Iterable[Path], *, root: Path = KUBERAY) -> list[Render]:
    """Every overlay and file, a few at a time."""
    paths = list(paths)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        renders = list(pool.map(lambda path: render(path, root=root), paths))
        return [
            _beside(each, _ground(each.name, root)) if _is_beside(path, root) else each
            for path, each in zip(paths, renders, strict=True)
        ]


def render(path: Path, *, root: Path = KUBERAY) -> Render:
    """One overlay by `kubectl kustomize`, one file as it stands."""
    name = short_name(path, root=root)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        command = [kubectl(), "kustomize", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if done.returncode != 0:
            return Render(name, None, (_failed(name, f"kustomize renders nothing: {done.stderr.strip()}"),))
        text = done.stdout
    try:
        own = tuple(each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each)
    except yaml.YAMLError as exc:
        return Render(name, None, (_failed(name, f"is not YAML: {exc}"),))
    return Render(name, complete(name, own), tuple(_twice(name, own)))


def complete(name: str, documents: tuple[Document, ...]) -> Rendered:
    """Documents with the manifests inside them."""
    return Rendered(name, (*documents, *embedded(documents)))


def short_name(path: Path, *, root: Path = KUBERAY) -> str:
    """`overlays/dev` is `dev`, `jobs/warm-up.yaml` is `jobs/warm-up`."""
    if not path.resolve().is_relative_to(root.resolve()):
        return path.stem
    relative = path.resolve().relative_to(root.resolve()).with_suffix("" if path.is_file() else path.suffix)
    return relative.as_posix().removeprefix("overlays/")


def kubectl() -> str:
    """The one of this Python's environment, or else of the PATH."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.is_file() else shutil.which("kubectl")
    if found is None:
        raise SystemExit("kubectl is needed to render overlays: `make setup` installs it into .venv")
    return found


def _ground(name: str, root: Path) -> Rendered | None:
    """The overlay that is there when a file or folder of this name is applied."""
    wanted = (_OWN_GROUNDS[name],) if name in _OWN_GROUNDS else _GROUNDS
    found = next((root / each for each in wanted if (root / each / "kustomization.yaml").is_file()), None)
    return _rendered(found) if found else None


@cache
def _rendered(overlay: Path) -> Rendered | None:
    return render(overlay).rendered


def _beside(each: Render, ground: Rendered | None) -> Render:
    if each.rendered is None or ground is None:
        return each
    return Render(each.name, Rendered(each.name, each.rendered.documents, ground.documents), each.findings)


def _failed(name: str, message: str) -> Finding:
    return Finding(name, "render", "kustomize", name, message)


def _twice(name: str, documents: tuple[Document, ...]) -> Iterable[Finding]:
    """Files that say one object twice: the second wins, silently. Kustomize refuses it by itself."""
    seen: set[tuple[str, ...]] = set()
    for each in documents:
        metadata = each.get("metadata") or {}
        key = (
            str(each.get("apiVersion")),
            str(each.get("kind")),
            str(metadata.get("namespace")),
            str(metadata.get("name")),
        )
        if metadata.get("name") and key in seen:
            yield Finding(name, "render", "said-twice", f"{key[1]}/{key[3]}", "stands there twice: keep one of them")
        seen.add(key)


def _is_beside(path: Path, root: Path) -> bool:
    """Whether it is applied beside an overlay: a file of ours, or a folder that is no overlay itself."""
    within = path.resolve().is_relative_to(root.resolve())
    return within and path.resolve().parent != (root / _OVERLAYS).resolve()


def _is_component(kustomization: str) -> bool:
    return bool((yaml.safe_load(kustomization) or {}).get("kind") == "Component")


def _is_loose(path: Path, kustomizations: Mapping[Path, str]) -> bool:
    """Whether no kustomization around it speaks of it."""
    around = [text for folder, text in kustomizations.items() if path.is_relative_to(folder)]
    named = path.name == "kustomization.yaml" or any(path.name in text for text in around)
    return not named and not any(map(_is_component, around))


def _is_manifest(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "\napiVersion:" in f"\n{text}" and "\nkind:" in text
