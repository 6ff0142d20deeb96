"""A model from elsewhere becomes a published and promoted artifact."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.local_file import file_digest, translated
from rag_stack.artifacts.manifest import ArtifactRef, Manifest, check_address
from rag_stack.errors import ArtifactError, ArtifactOutdatedError
from rag_stack.generation.conversion import convert_gguf
from rag_stack.generation.reranker_import import Making, import_reranker, is_reranker

_WANTED: Final = frozenset({".json", ".safetensors", ".txt", ".jinja", ".model"})
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt"})

Progress: TypeAlias = Callable[[str], None]
Addition: TypeAlias = Callable[[Path, Progress], None]


def import_model(
    source: Path,
    *,
    catalog: Catalog,
    name: str,
    progress: Progress,
    add_to_embedder: Addition | None = None,
    make_reranker: Making | None = None,
) -> Manifest:
    """Publish and promote a safetensors directory as it is, or a GGUF file converted to bfloat16 safetensors.

    `add_to_embedder` may add files to an embedder's directory before it is published, and a cross-encoder becomes what
    `make_reranker` makes of it. Importing the same source again finds what is published, a GGUF file without another
    conversion. Blocking. Raises ArtifactError, naming the file, for anything that is not a whole model.
    """
    check_address("models", name)  # converting takes a minute, and would be for nothing
    source = _locate(source)
    if make_reranker is not None and is_reranker(source):
        manifest = import_reranker(source, catalog=catalog, name=name, progress=progress, make=make_reranker)
    elif source.is_dir():
        manifest = _import_directory(source, catalog=catalog, name=name, progress=progress, add=add_to_embedder)
    else:
        manifest = _import_gguf(source, catalog=catalog, name=name, progress=progress)
    pointer = catalog.promote(manifest.ref)
    progress(f"promoted {manifest.ref} (before: {pointer.previous or 'nothing'})")
    return manifest


def _locate(source: Path) -> Path:
    """A model directory, or the GGUF file that was meant."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise ArtifactError(f"{str(source)!r} does not exist; expected a model directory or a .gguf file")
    if (source / "config.json").is_file() or is_reranker(source):
        return source
    with translated("read", source):
        found = sorted(source.glob("*.gguf"))
    if len(found) != 1:
        what = f"{len(found)} GGUF files: {', '.join(path.name for path in found)}" if found else "no GGUF file"
        raise ArtifactError(
            f"{str(source)!r} holds no config.json and {what}; expected a model directory (config.json, safetensors, "
            "tokenizer) or one .gguf file"
        )
    return found[0]


def _import_directory(
    source: Path, *, catalog: Catalog, name: str, progress: Progress, add: Addition | None
) -> Manifest:
    files = _model_files(source)
    metadata = {"format": "safetensors", **_describe_model(source)}
    # A directory of links: what is not needed stays behind, and nothing is copied twice.
    with tempfile.TemporaryDirectory(prefix="rag-stack-import-") as staging:
        for file in files:
            link = Path(staging) / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        if add and metadata["task"] == "embed":
            add(Path(staging), progress)
        progress(f"publishing {len(files)} files of {source}")
        return catalog.publish(Path(staging), kind="models", name=name, metadata=metadata)


def _import_gguf(source: Path, *, catalog: Catalog, name: str, progress: Progress) -> Manifest:
    with translated("read", source):
        source_digest = file_digest(source)
    for version in catalog.versions("models", name):
        try:
            manifest = catalog.manifest(ArtifactRef("models", name, version))
        except ArtifactOutdatedError:
            # What an older release converted is not read any more.
            continue
        if manifest.metadata.get("source_digest") == source_digest:
            progress(f"{source.name} is published already, as {manifest.ref}")
            return manifest
    progress(f"converting {source.name} to bfloat16 safetensors (once; a minute or so)")
    with tempfile.TemporaryDirectory(prefix="rag-stack-import-") as converted:
        convert_gguf(source, target=Path(converted))
        metadata = {
            "format": "safetensors",
            "dtype": "bfloat16",
            "source_file": source.name,
            "source_digest": source_digest,
            **_describe_model(Path(converted)),
        }
        progress("publishing")
        return catalog.publish(Path(converted), kind="models", name=name, metadata=metadata)


def _model_files(source: Path) -> list[Path]:
    """What a model needs of a directory. Raises ArtifactError when weights or tokenizer are missing or pickled."""
    with translated("read", source):
        folders = [source, *(source / folder for folder in _module_folders(source))]
        present = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if path.is_file()]
    for folder in folders:
        suffixes = {path.suffix for path in present if path.parent == folder}
        if ".safetensors" not in suffixes and (suffixes & _PICKLES or folder == source):
            what = "only pickled weights, which can run code when they are loaded" if suffixes & _PICKLES else "none"
            raise ArtifactError(
                f"{str(folder)!r} must hold safetensors weights, found {what}; convert or download them"
            )
    files = [path for path in present if path.suffix in _WANTED and not path.name.startswith(".")]
    if not any(path.name.startswith(("tokenizer", "vocab")) or path.suffix == ".model" for path in files):
        raise ArtifactError(f"{str(source)!r} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.txt)")
    _check_weights(source, files)
    return files


def _check_weights(source: Path, files: list[Path]) -> None:
    """Raise ArtifactError for a shard that is missing, and for weights that are truncated or a Git LFS pointer."""
    from safetensors import SafetensorError, safe_open

    index = source / "model.safetensors.index.json"
    shards = set(_json_object(index).get("weight_map", {}).values()) if index.is_file() else set()
    missing = sorted(shards - {path.name for path in files})
    if missing:
        raise ArtifactError(f"{str(source)!r} lacks the weights {', '.join(missing)}, which {index.name} lists")
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with translated("read", path), safe_open(path, framework="np"):
                pass
        except SafetensorError as exc:
            raise ArtifactError(f"{str(path)!r} is not a whole safetensors file ({exc}); download it again") from exc


def _module_folders(source: Path) -> list[str]:
    """The sub-folders that a sentence-transformers model is made of, such as `1_Pooling`."""
    return [module["path"] for module in _modules(source) if module.get("path")]


def _describe_model(source: Path) -> dict[str, Any]:
    """What the rest of the system must know of a model: its task and its limits."""
    config = _json_object(source / "config.json")
    text_config = {**config, **config.get("text_config", {})}
    modules = _modules(source)
    if not modules:
        architectures = config.get("architectures") or [None]
        return {
            "task": "generate",
            "architecture": architectures[0],
            "max_position_embeddings": text_config.get("max_position_embeddings"),
        }
    sentence = source / "sentence_bert_config.json"
    limits = _json_object(sentence) if sentence.is_file() else {}
    return {
        "task": "embed",
        "dimension": _dimension(source, modules=modules, config=text_config),
        "max_tokens": limits.get("max_seq_length") or text_config.get("max_position_embeddings"),
    }


def _dimension(source: Path, *, modules: list[dict[str, Any]], config: Mapping[str, Any]) -> int:
    """Values of one embedding: what the last module that can change it puts out."""
    for module in reversed(modules):
        path = source / module.get("path", "") / "config.json"
        if module.get("path") and path.is_file():
            settings = _json_object(path)
            for key in ("out_features", "embedding_dimension", "word_embedding_dimension"):
                if isinstance(settings.get(key), int):
                    return int(settings[key])
    if not isinstance(config.get("hidden_size"), int):
        raise ArtifactError(f"{str(source)!r} does not say its dimension: no hidden_size in config.json")
    return int(config["hidden_size"])


def _modules(source: Path) -> list[dict[str, Any]]:
    path = source / "modules.json"
    if not path.is_file():
        return []
    modules = _json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ArtifactError(f"{str(path)!r} must hold a list of modules")
    for module in modules:
        folder = module.get("path", "")
        if not isinstance(folder, str) or Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ArtifactError(f"{str(path)!r} names the folder {folder!r}, expected one inside the model")
    return modules


def _json_object(path: Path) -> dict[str, Any]:
    document = _json(path)
    if not isinstance(document, dict):
        raise ArtifactError(f"{str(path)!r} must hold a JSON object, got {type(document).__name__}")
    return document


def _json(path: Path) -> Any:  # noqa: ANN401  JSON is anything until it is checked
    try:
        with translated("read", path):
            return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ArtifactError(f"{str(path)!r} is not JSON: {exc}; download it again") from exc
