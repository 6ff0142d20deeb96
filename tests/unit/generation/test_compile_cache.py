"""Where vLLM's compiled code is kept: beside the artifacts, a directory for each model and its settings."""

from pathlib import Path
from typing import Any

from rag_stack.config import ArtifactChoice, ArtifactsConfig, Release
from rag_stack.generation.compile_cache import keep_compiled, settings_key


def release(**more: Any) -> Release:
    known: dict[str, Any] = {"name": "town", "model": ArtifactChoice(name="llm"), "embedder": ArtifactChoice(name="e")}
    return Release(**(known | more))


def test_it_is_with_the_nodes_cache(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    where = keep_compiled(release(artifacts=ArtifactsConfig(cache=tmp_path)), environ)
    assert where.parent == tmp_path / "compiled"
    assert environ == {"VLLM_CACHE_ROOT": str(where)}


def test_a_node_that_keeps_its_cache_elsewhere_says_so(tmp_path: Path) -> None:
    environ = {"RAG_STACK_CACHE": str(tmp_path)}
    assert keep_compiled(release(), environ).parent == tmp_path / "compiled"


def test_what_is_known_of_models_classes_is_shared(tmp_path: Path) -> None:
    artifacts = ArtifactsConfig(cache=tmp_path)
    one = keep_compiled(release(artifacts=artifacts), {})
    (one / "modelinfos" / "llama.json").write_text("known")
    other = keep_compiled(release(artifacts=artifacts, engine={"max_model_len": 512}), {})
    assert other != one
    assert (other / "modelinfos" / "llama.json").read_text() == "known"
    assert keep_compiled(release(artifacts=artifacts), {}) == one


def test_a_directory_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("in the way")
    assert keep_compiled(release(artifacts=ArtifactsConfig(cache=tmp_path)), {}).parent == tmp_path / "compiled"


def test_what_the_user_has_set_stays() -> None:
    environ = {"VLLM_CACHE_ROOT": "/mine"}
    assert keep_compiled(release(), environ) == Path("/mine")


def test_other_settings_or_weights_have_another_directory() -> None:
    one = settings_key(release(engine={"dtype": "bfloat16"}))
    assert one == settings_key(release(name="other", engine={"dtype": "bfloat16"}))
    assert one != settings_key(release(engine={"dtype": "float32"}))
    other = ArtifactChoice(name="llm", digest=f"sha256:{'0' * 64}")
    assert one != settings_key(release(model=other, engine={"dtype": "bfloat16"}))
