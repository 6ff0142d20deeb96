"""The releases that `loadtests.rollout` changes to, one after the other: good ones, and three that have to go back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.scripted_engine import FAILS_TO_START, SCRIPT
from loadtests.swap_data import EMBEDDER, INDEX
from rag_stack.config import Release

# The scripted engine needs a tokenizer of its model, and the embedder has one.
MODEL = EMBEDDER


@dataclass(frozen=True, slots=True)
class Change:
    """A release, and whether it is to be `promoted`; else it is to go back by itself."""

    kind: str
    release: Release
    promoted: bool = True


def first_release(*, folder: str, port: int, replicas: int) -> Release:
    """What serves before the first change. Its canary asks for a source, which only a working retrieval finds."""
    return Release.model_validate(
        {
            "name": "rollout",
            "artifacts": {"root": f"file://{folder}/store", "cache": f"{folder}/cache"},
            "model": {"name": MODEL},
            "embedder": {"name": EMBEDDER},
            "stores": [{"name": INDEX, "index": INDEX, "version": "v00"}],
            "default_store": INDEX,
            "retrieval": {"top_k": 2},
            "engine": {"max_model_len": 2048},
            # How fast the machine is shall not decide: that is what `loadtests.overload` is about.
            "scaling": {"min_replicas": replicas, "max_replicas": replicas, "ttft_target_s": 60.0},
            "drain": {"limit_s": 20},
            "server": {"port": port},
            "rollout": {
                "steps": [0.5, 1.0],
                "step_requests": 40,
                "step_s": 2,
                "limit_s": 1200,
                "canaries": [{"question": "What is in part 1?", "expect": [f"file-{n}" for n in range(20)]}],
            },
        }
    )


def changes(first: Release) -> Iterator[Change]:
    """Ten, three of them bad. What goes back leaves the release as it was."""
    release = first
    for number in range(1, 11):
        match number:
            case 3:
                retrieval = release.retrieval.model_copy(update={"score_threshold": 1.0})
                yield Change("canary fails", release.model_copy(update={"retrieval": retrieval}), promoted=False)
            case 6:
                yield Change("engine does not start", _with_engine(release, {FAILS_TO_START: True}), promoted=False)
            case 9:
                yield Change("engine is slow", _with_engine(release, {SCRIPT: {"prefill_s": 0.6}}), promoted=False)
            case 4 | 8:
                store = release.stores[0].model_copy(update={"version": f"v0{number // 4}"})
                release = release.model_copy(update={"stores": (store,)})
                yield Change("index", release)
            case 2 | 7:
                release = _with_engine(release, {SCRIPT: {"token_s": 0.01 + number / 1000}})
                yield Change("engine setting", release)
            case _:
                prompt = release.prompt.model_copy(update={"system": f"Answer as edition {number} of this desk does."})
                release = release.model_copy(update={"prompt": prompt})
                yield Change("prompt", release)


def quick(all_: Sequence[Change]) -> list[Change]:
    """Two that are promoted, of which an index, and one that goes back."""
    return [all_[0], all_[2], all_[3]]


def _with_engine(release: Release, settings: dict[str, object]) -> Release:
    return release.model_copy(update={"engine": {**release.engine, **settings}})
