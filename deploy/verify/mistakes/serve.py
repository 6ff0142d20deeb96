"""Mistakes in what is served, in the size of what serves, and in where it lands."""

from typing import Any, Final

from deploy.verify.mistakes.draft import Draft, Mistake, application


def _deployment(draft: Draft, name: str, **changes: Any) -> None:
    draft.serve(lambda config: application(config, name)["deployments"][0].update(changes))


def _application(draft: Draft, name: str, **changes: Any) -> None:
    draft.serve(lambda config: application(config, name).update(changes))


def _stranger(config: dict[str, Any]) -> None:
    """An application that is none of ours, whose deployment has Serve's own defaults."""
    config["applications"].append(
        {
            "name": "extra",
            "import_path": "json:dumps",
            "route_prefix": "/extra",
            "deployments": [{"name": "Extra", "ray_actor_options": {"resources": {"control": 0.01}}}],
        }
    )


def _parallel(draft: Draft, *, gpus: str, parallel: int) -> None:
    draft.data("rag-stack-size").update(RAG_STACK_WORKER_GPUS=gpus)
    draft.release(lambda release: release["engine"].update(tensor_parallel_size=parallel))


MISTAKES: Final = (
    Mistake(
        "a serveConfigV2 that is no YAML",
        "serve",
        "readable",
        "applications",
        lambda draft: draft.spec("RayService").update(serveConfigV2="applications: ["),
    ),
    Mistake(
        "a text where Serve wants a number",
        "serve",
        "serve-fields",
        "max_ongoing_requests",
        lambda draft: _deployment(draft, "files", max_ongoing_requests="many"),
    ),
    Mistake(
        "a misspelt field of an application, which Serve drops",
        "serve",
        "unknown-fields",
        "route_prefx",
        lambda draft: _application(draft, "files", route_prefx="/v1/files"),
    ),
    Mistake(
        "a key of autoscaling_config that Serve does not know, and drops",
        "serve",
        "autoscaling-fields",
        "max_replica'",
        lambda draft: _deployment(draft, "files", autoscaling_config={"max_replica": 2, "upscale_delay_s": 0}),
    ),
    Mistake(
        "a wake that first waits half a minute",
        "serve",
        "upscale-delay",
        "upscale_delay_s",
        lambda draft: _deployment(draft, "files", autoscaling_config={"min_replicas": 0}),
    ),
    Mistake(
        "a queue whose bound is taken away",
        "serve",
        "bounded-queues",
        "max_queued_requests",
        lambda draft: _deployment(draft, "files", max_queued_requests=-1),
    ),
    Mistake(
        "an application of somebody else's with an unbounded queue",
        "serve",
        "bounded-queues",
        "unbounded",
        lambda draft: draft.serve(_stranger),
    ),
    Mistake(
        "an import path where nothing is",
        "serve",
        "import-paths",
        "vector_store:",
        lambda draft: _application(draft, "vector_stores", import_path="rag_stack.serving.vector_store:build"),
    ),
    Mistake(
        "an application under another route than its own",
        "serve",
        "route-prefixes",
        "/v1/files",
        lambda draft: _application(draft, "files", route_prefix="/files"),
    ),
    Mistake(
        "a stack without /ready",
        "serve",
        "route-prefixes",
        "ready",
        lambda draft: draft.serve(lambda config: config["applications"].remove(application(config, "ready"))),
    ),
    Mistake(
        "a misspelt field of the release",
        "serve",
        "releases",
        "retrieval.topk",
        lambda draft: draft.release(lambda release: release["retrieval"].update(topk=4)),
    ),
    Mistake(
        "applications of two releases",
        "serve",
        "releases",
        "anchor",
        lambda draft: draft.serve(lambda config: application(config, "files")["args"]["release"].update(name="other")),
    ),
    Mistake(
        "an argument that vLLM has not",
        "serve",
        "engine-settings",
        "max_model_length",
        lambda draft: draft.release(lambda release: release["engine"].update(max_model_length=8192)),
    ),
    Mistake(
        "a pod of another size than the size says",
        "serve",
        "worker-size",
        "RAG_STACK_WORKER_MEMORY",
        lambda draft: draft.container("engine")["resources"]["limits"].update(memory="3Gi"),
    ),
    Mistake(
        "no pod for a rollout's surge",
        "serve",
        "surge",
        "RAG_STACK_MAX_WORKERS",
        lambda draft: draft.data("rag-stack-size").update(RAG_STACK_MAX_WORKERS="0"),
    ),
    Mistake(
        "another tensor parallelism than a worker has GPUs",
        "serve",
        "release-size",
        "tensor_parallel_size",
        lambda draft: _parallel(draft, gpus="4", parallel=2),
    ),
    Mistake(
        "a pod that goes before its answers are given",
        "serve",
        "drain-time",
        "terminationGracePeriodSeconds",
        lambda draft: draft.pod("engine").update(terminationGracePeriodSeconds=20),
    ),
    Mistake(
        "an object store that is larger than its memory",
        "serve",
        "shared-memory",
        "object-store-memory",
        lambda draft: draft.group("engine")["rayStartParams"].update({"object-store-memory": "999000000000"}),
    ),
    Mistake(
        "a resource of a group that Ray cannot read",
        "ray",
        "node-types",
        "understand",
        lambda draft: draft.group("control").update(resources={"CPU": "two"}),
    ),
    Mistake(
        "a head that takes work",
        "ray",
        "idle-head",
        "num-cpus",
        lambda draft: draft.group("head")["rayStartParams"].pop("num-cpus"),
    ),
    Mistake(
        "an engine that needs more than a worker has",
        "ray",
        "engine-placement",
        "replica of the engine",
        lambda draft: draft.container("engine")["resources"]["limits"].update(cpu="1"),
    ),
    Mistake(
        "a control pod that has room for an engine",
        "ray",
        "engine-apart",
        "control",
        lambda draft: draft.group("control").update(resources={"CPU": "64", "GPU": "8", "control": "100"}),
    ),
    Mistake(
        "an actor that asks for a resource that nobody has",
        "ray",
        "actor-resources",
        "contrl",
        lambda draft: _deployment(draft, "files", ray_actor_options={"num_cpus": 0, "resources": {"contrl": 0.01}}),
    ),
    Mistake(
        "control applications on a group that goes to zero",
        "ray",
        "control-stays",
        "minReplicas",
        lambda draft: draft.group("control").update(minReplicas=0),
    ),
    Mistake(
        "a control application that may land on an engine's worker",
        "ray",
        "pinned-control",
        "control",
        lambda draft: _deployment(draft, "models", ray_actor_options={"num_cpus": 0}),
    ),
    Mistake(
        "a driver that no node has the CPUs for",
        "ray",
        "driver-placement",
        "driver",
        lambda draft: draft.spec("RayJob", "trial").update(entrypointNumCpus=64),
    ),
)
