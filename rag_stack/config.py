"""The release file: what one deployment serves, pinned together. Fields and validation; it does nothing.

Precedence is flag, environment, file, default; the first two are merged by the command line with `model_copy`.
Secrets never stand in the file: keys are given as SHA-256 digests, in the environment as RAG_STACK_API_KEYS and
RAG_STACK_ADMIN_KEYS, or in the files of RAG_STACK_KEYS_DIRECTORY.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rag_stack.errors import ConfigError

# One path component of an artifact's address, so no separators and no leading dot.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# What builds the engine's application from a serve.yaml.
ENGINE_BUILDER = "rag_stack.serving.builders:engine"

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactsConfig(_Frozen):
    """Where artifacts come from and where this node keeps them."""

    root: str = Field("file://./var/artifacts", description="fsspec URL of the object store")
    cache: Path = Field(Path("var/cache"), description="this node's cache directory; RAG_STACK_CACHE overrides it")
    cache_limit_bytes: int | None = Field(None, ge=1, description="what it may hold; none: what the disk holds")


class ArtifactChoice(_Frozen):
    """An artifact by name; without a version, the one that is promoted when the release starts.

    With its manifest's digest, a node that has it asks no object store, and another content is refused.
    """

    name: Name
    version: Name | None = None
    digest: Digest | None = None


class StoreConfig(_Frozen):
    """A searchable store and the index that holds its content; without a version, whatever is promoted, also later."""

    name: Name
    index: Name
    version: Name | None = None
    digest: Digest | None = None
    description: str = ""


# What the query cache of a replica holds at most.
QUERY_CACHE_BYTES: Final = 128 << 20


class RetrievalConfig(_Frozen):
    """How a question is searched, and how much of a node that may take."""

    top_k: int = Field(4, ge=1, le=50)
    score_threshold: float = Field(0.0, ge=0.0, le=1.0, description="a passage that scores less is no source")
    mode: Literal["hybrid", "dense", "lexical"] = Field("hybrid", description="by vectors and words, or by one of them")
    fusion: Literal["share", "reciprocal_rank"] = Field("share", description="how vectors and words make one score")
    text_weight: float = Field(0.5, ge=0.0, le=1.0, description="how much of that score words are")
    candidates: int = Field(100, ge=1, le=10_000, description="passages that vectors and words give, each")
    rerank_candidates: int = Field(
        20, ge=1, le=200, description="passages that a reranker looks at; of several queries, pairs"
    )
    duplicates: float = Field(
        1.0, ge=0.0, le=1.0, description="a passage that shares more of its text with a better one is left out"
    )
    query_cache: int = Field(1000, ge=0, description="vectors and results of questions that are remembered; 0: none")
    threads: int = Field(1, ge=1, le=64, description="searches that run at once")
    threads_per_search: int = Field(1, ge=1, le=64, description="FAISS and torch threads of one search")
    queue: int = Field(256, ge=0, description="searches that may wait; one more is answered 429")
    rerank_threads: int = Field(1, ge=1, le=64, description="threads of one rerank")


class SwapConfig(_Frozen):
    """How a new index version takes the place of the one that serves."""

    limit_s: float = Field(300.0, gt=0, description="who has not prepared a version by then is not waited for")
    both_resident: bool = Field(False, description="refuse a version unless old and new fit in memory, whole")
    max_stores: int = Field(256, ge=1, description="stores that a process opens")


class GpuIndexConfig(_Frozen):
    """Whether indexes are copied to the device of the engine's first worker, beside its weights and its cache.

    They need faiss-gpu-cuvs; without it, or where the device refuses, the host answers. Filters are the host's always.
    """

    enabled: bool = Field(False, description="copy indexes to the device; the engine's cache is smaller by that")
    memory_bytes: int = Field(
        2 << 30, ge=1 << 20, description="of the device, for all stores; two versions of each fit, during a swap"
    )
    kind: Literal["exact", "cagra"] = Field("exact", description="search all vectors, or a graph that cuVS builds")


class PromptConfig(_Frozen):
    """What stands around the passages."""

    system: str = (
        "Answer the question from the documents below, in their own words wherever you can. "
        "If they do not hold the answer, say that you do not know."
    )
    reserve_tokens: int = Field(256, ge=1, description="left for the answer when a request sets no max_tokens")
    order: Literal["cached", "reading", "rank"] = Field(
        "cached",
        description="of the documents: what the engine has cached first, then what is asked for most; or as they lie "
        "in their folder; or by relevance",
    )


class PrefillConfig(_Frozen):
    """Whether the engine reads the prompt that a rerank will probably leave as it is, while the rerank runs."""

    mode: Literal["off", "auto"] = Field("auto", description="auto: where it is measured to pay; see rag/prefill.py")
    at_once: int = Field(2, ge=1, le=64, description="prompts read ahead at once")
    least_share: float = Field(
        0.1, ge=0.0, le=1.0, description="of the time to the first token, what the rerank takes at least"
    )


class ServerConfig(_Frozen):
    """The HTTP end."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    max_file_bytes: int = Field(100 * 1024 * 1024, ge=1024, description="what one uploaded file may have")
    api_key_sha256: tuple[Sha256Hex, ...] = Field((), description="digests of the keys that may call; none: open")
    admin_key_sha256: tuple[Sha256Hex, ...] = Field((), description="digests of the keys that may call /admin")


class ScalingConfig(_Frozen):
    """How many replicas serve, and what makes it more or fewer. See serving/scaling/policy.py for the policy."""

    min_replicas: int = Field(1, ge=0, description="0: the engine goes away when idle, and the next request wakes it")
    max_replicas: int = Field(1, ge=1)
    requests_per_replica: float = Field(8.0, gt=0, description="requests at once that one replica is for")
    ttft_target_s: float = Field(5.0, gt=0, description="time to first token that goodput counts against")
    idle_s: float = Field(300.0, gt=0, description="without a request for so long, the last replica goes")
    down_after_s: float = Field(60.0, ge=0, description="as many stay as were needed at any time in so long")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is over max_replicas {self.max_replicas}")
        return self


class WakeConfig(_Frozen):
    """What happens to requests while no replica serves, and what is kept ready for the next start."""

    hold_requests: int = Field(1000, ge=1, description="requests held at once; one more is answered 429")
    hold_bytes: int = Field(256 * 1024 * 1024, ge=1024, description="bodies of all held requests together")
    hold_s: float = Field(900.0, gt=0, description="nobody is held longer")
    heartbeat_s: float = Field(10.0, gt=0, le=10.0, description="a client that waits hears something this often")
    standby: bool = Field(False, description="keep one process a node with imports and weights ready")
    fork: bool | None = Field(
        None, description="fork an engine's processes from one that has imported already; none: on CPUs alone"
    )


class RoutingConfig(_Frozen):
    """Which of several replicas a question goes to."""

    affinity: Literal["auto", "none"] = Field(
        "auto",
        description="auto: with three replicas and more, questions about the same documents go to the replica that has "
        "them in its key-value cache, as far as the load allows; a request's `prompt_cache_key` says what it is about, "
        "with two replicas too. none: replicas take turns",
    )


class AdmissionConfig(_Frozen):
    """What a replica takes on at once."""

    queue: int = Field(64, ge=0, description="requests that may wait for the engine; one more is answered 429")
    waiting_tokens: int = Field(262_144, ge=1, description="prompt and answer tokens that may wait together")


class DrainConfig(_Frozen):
    """How a replica ends."""

    limit_s: float = Field(60.0, ge=0, description="running answers have so long to finish")
    stuck_s: float = Field(120.0, gt=0, description="an engine with work that gives no token for so long is replaced")


class Canary(_Frozen):
    """A question whose answer tells whether a release works."""

    question: str = Field(min_length=1)
    expect: tuple[str, ...] = Field((), description="file names or document ids of which one must be among the sources")
    answer_contains: str = Field("", description="what the answer must hold, whatever its case")


class RolloutConfig(_Frozen):
    """How the next version of this release takes over from the one before."""

    steps: tuple[float, ...] = Field((0.05, 0.25, 0.5, 1.0), min_length=1, description="share of new conversations")
    step_requests: int = Field(50, ge=1, description="requests that the new version answers in each step, at least")
    step_s: float = Field(30.0, ge=0, description="how long each step lasts, at least")
    limit_s: float = Field(1800.0, gt=0, description="a rollout that is not through by then goes back")
    max_error_rate: float = Field(0.02, ge=0, le=1, description="more failed answers than this go back")
    max_ttft_ratio: float = Field(1.5, gt=0, description="a median first token slower than so many times the old's")
    surge: int = Field(1, ge=0, le=1, description="replicas beside the others during the change; 0 replaces in place")
    canaries: tuple[Canary, ...] = ()

    @model_validator(mode="after")
    def _steps_rise_to_one(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or not self.steps[0] > 0 or self.steps[-1] != 1.0:
            raise ValueError(f"steps must rise to 1.0, got {self.steps}")
        return self


class Release(_Frozen):
    """What one deployment serves, pinned together: weights, embedder, index versions, prompt and engine settings."""

    name: Name
    artifacts: ArtifactsConfig = ArtifactsConfig()
    model: ArtifactChoice
    embedder: ArtifactChoice
    reranker: ArtifactChoice | None = Field(None, description="a cross-encoder that orders what a search has found")
    stores: tuple[StoreConfig, ...] = ()
    default_store: Name | None = None
    retrieval: RetrievalConfig = RetrievalConfig()
    gpu_index: GpuIndexConfig = GpuIndexConfig()
    swap: SwapConfig = SwapConfig()
    prompt: PromptConfig = PromptConfig()
    prefill: PrefillConfig = PrefillConfig()
    scaling: ScalingConfig = ScalingConfig()
    wake: WakeConfig = WakeConfig()
    admission: AdmissionConfig = AdmissionConfig()
    routing: RoutingConfig = RoutingConfig()
    drain: DrainConfig = DrainConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments, passed through")
    engine_env: dict[str, str] = Field(default_factory=dict, description="environment of the engine's processes")
    server: ServerConfig = ServerConfig()

    @property
    def models(self) -> tuple[ArtifactChoice, ...]:
        """All artifacts of the kind `models` that the release names, the engine's first."""
        return (self.model, self.embedder, *((self.reranker,) if self.reranker else ()))

    @model_validator(mode="after")
    def _stores_are_consistent(self) -> Self:
        names = [store.name for store in self.stores]
        if len(names) != len(set(names)):
            raise ValueError(f"store names must differ, got {names}")
        if self.default_store is not None and self.default_store not in names:
            raise ValueError(f"default_store {self.default_store!r} is not one of the stores {names}")
        return self


def load_release(path: Path) -> Release:
    """Read and validate a release file. Raises ConfigError with the file's name and every field that is wrong."""
    return read_yaml(path, Release, what="release")


def load_deployed_release(path: Path) -> Release:
    """The release of a release file, or the one that a serve.yaml gives to its engine. Raises ConfigError."""
    document = read_mapping(path)
    if "applications" not in document:
        return _validated(document, Release, path=path, what="release")
    applications = document["applications"] if isinstance(document["applications"], list) else []
    for application in applications:
        if isinstance(application, dict) and application.get("import_path") == ENGINE_BUILDER:
            args = application.get("args")
            release = args.get("release") if isinstance(args, dict) else None
            return _validated(release, Release, path=path, what="release of a cluster (applications.args.release)")
    raise ConfigError(f"{path} has applications, and none of them is built by {ENGINE_BUILDER}: give a release file")


def read_yaml(path: Path, model: type[ModelT], *, what: str) -> ModelT:
    """A YAML file as a model. Raises ConfigError that says `what` the file should be and what is wrong with it."""
    return _validated(read_mapping(path, what=what), model, path=path, what=what)


def read_mapping(path: Path, *, what: str = "release") -> dict[str, Any]:
    """A YAML file that has a mapping at its top. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read the {what} {path}: {exc.strerror or exc}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping at its top, got {type(document).__name__}")
    return document


def _validated(document: object, model: type[ModelT], *, path: Path, what: str) -> ModelT:
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise ConfigError(f"{path} is not a valid {what}: {describe(exc)}") from exc


def describe(error: ValidationError) -> str:
    """One line an error: `engine.port: Input should be ...`."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())


def is_name(text: str) -> bool:
    """Whether a string may be the name or version of an artifact or store."""
    return re.fullmatch(NAME_PATTERN, text) is not None
