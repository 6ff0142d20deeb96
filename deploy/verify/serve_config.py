"""A RayService's serveConfigV2: Serve's own schema, our release, vLLM's arguments, and bounded queues."""

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from deploy.verify.rendered import Document, Flaw, Rendered, Rule, dig, title
from rag_stack.config import Release, describe
from rag_stack.errors import ConfigError
from rag_stack.generation.engine_settings import check_engine_settings, vllm_fields

# A replica's start is long enough without it; thirty seconds by default.
_UPSCALE_DELAY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The applications that a RayService serves."""

    thing: str
    owner: Document
    config: Document

    @property
    def applications(self) -> list[Document]:
        """Each application."""
        return self.config.get("applications") or []

    @property
    def release(self) -> Release | None:
        """The release of the first application that has a valid one."""
        for each in self.applications:
            try:
                return Release.model_validate(dig(each, "args", "release"))
            except ValidationError:
                continue
        return None


def serve_configs(overlay: Rendered) -> Iterator[ServeConfig]:
    """Those that are YAML mappings."""
    for service in overlay.of("RayService"):
        parsed = _parsed(service)
        if isinstance(parsed, dict):
            yield ServeConfig(title(service), service, parsed)


def readable(overlay: Rendered) -> Iterator[Flaw]:
    """There is a configuration, and it is YAML."""
    for service in overlay.of("RayService"):
        if not isinstance(_parsed(service), dict) or not dig(_parsed(service), "applications"):
            yield Flaw(title(service), "serveConfigV2 has no applications: give serve.yaml, see base/serve.yaml")


def serve_fields(overlay: Rendered) -> Iterator[Flaw]:
    """Serve takes the whole configuration."""
    from ray.serve.schema import ServeDeploySchema

    for each in serve_configs(overlay):
        try:
            ServeDeploySchema.model_validate(each.config)
        except ValidationError as exc:
            yield Flaw(each.thing, f"serveConfigV2: {describe(exc)}: correct the field")


def unknown_fields(overlay: Rendered) -> Iterator[Flaw]:
    """Serve drops a field that it does not know, silently."""
    from ray.serve import schema

    def unknown(where: str, document: Any, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
        return ((where, key) for key in sorted(set(document or {}) - set(model.model_fields)))

    for each in serve_configs(overlay):
        found = [*unknown("serveConfigV2", each.config, schema.ServeDeploySchema)]
        found += unknown("http_options", each.config.get("http_options"), schema.HTTPOptionsSchema)
        for application in each.applications:
            found += unknown(str(application.get("name")), application, schema.ServeApplicationSchema)
        for _, name, deployment in _deployments(overlay):
            found += unknown(name, deployment, schema.DeploymentSchema)
            found += unknown(name, deployment.get("ray_actor_options"), schema.RayActorOptionsSchema)
        for where, key in found:
            yield Flaw(each.thing, f"{where}: Serve has no field {key!r} there and drops it: correct or remove it")


def autoscaling_fields(overlay: Rendered) -> Iterator[Flaw]:
    """Serve drops a key of autoscaling_config that it does not know, silently."""
    from ray.serve.config import AutoscalingConfig

    for each, name, deployment in _deployments(overlay):
        config = deployment.get("autoscaling_config")
        for key in sorted(set(config or {}) - set(AutoscalingConfig.model_fields)) if isinstance(config, dict) else ():
            yield Flaw(each.thing, f"{name}: autoscaling_config has no {key!r}: see AutoscalingConfig of Ray Serve")


def upscale_delay(overlay: Rendered) -> Iterator[Flaw]:
    """A wake from zero does not wait before it starts."""
    for each, name, deployment in _deployments(overlay):
        config = deployment.get("autoscaling_config")
        if isinstance(config, dict) and float(config.get("upscale_delay_s", 30.0)) > _UPSCALE_DELAY_S:
            yield Flaw(each.thing, f"{name}: upscale_delay_s is over {_UPSCALE_DELAY_S:g}, 30 unless said: say 0")


def bounded_queues(overlay: Rendered) -> Iterator[Flaw]:
    """A queue without a bound answers nobody in time. Ours have one; an override keeps it."""
    for each, name, deployment in _deployments(overlay):
        if not is_ours(name) and deployment.get("max_queued_requests", -1) < 0:
            yield Flaw(each.thing, f"{name}: max_queued_requests is unbounded: say how many may wait")
        elif deployment.get("max_queued_requests", 0) < 0:
            yield Flaw(each.thing, f"{name}: max_queued_requests -1 takes our bound away: leave it out")


def import_paths(overlay: Rendered) -> Iterator[Flaw]:
    """What an application names can be imported."""
    for each in serve_configs(overlay):
        for application in each.applications:
            path = str(application.get("import_path"))
            wrong = _unresolved(path)
            if wrong:
                yield Flaw(each.thing, f"{application.get('name')}: import_path {path} names nothing: {wrong}")


def route_prefixes(overlay: Rendered) -> Iterator[Flaw]:
    """Each application answers where clients and HAProxy's start script look for it."""
    from rag_stack.serving.prefixes import PREFIXES

    for each in serve_configs(overlay):
        for application in each.applications:
            name, prefix = str(application.get("name")), application.get("route_prefix")
            if prefix != PREFIXES.get(name, prefix):
                yield Flaw(each.thing, f"{name}: route_prefix must be {PREFIXES[name]}, got {prefix}")
        missing = set(PREFIXES) - {str(application.get("name")) for application in each.applications}
        if missing and each.release is not None:
            yield Flaw(each.thing, f"has no application {sorted(missing)}: add it, see base/serve.yaml")


def releases(overlay: Rendered) -> Iterator[Flaw]:
    """Each application's release is one, and all have the same."""
    for each in serve_configs(overlay):
        ours = [application for application in each.applications if is_ours(str(application.get("import_path")))]
        for application in ours:
            try:
                Release.model_validate(dig(application, "args", "release"))
            except ValidationError as exc:
                yield Flaw(each.thing, f"{application.get('name')}: args.release: {describe(exc)}: correct the field")
        if any(application.get("args") != ours[0].get("args") for application in ours):
            yield Flaw(each.thing, "applications differ in args: alias one anchor (&args, *args)")


def engine_settings(overlay: Rendered) -> Iterator[Flaw]:
    """`engine:` has arguments of vLLM alone."""
    for each in serve_configs(overlay):
        release = each.release
        try:
            check_engine_settings(release.engine if release else {}, fields=known_engine_fields())
        except ConfigError as exc:
            yield Flaw(each.thing, str(exc))


RULES: Final[tuple[Rule, ...]] = (
    readable,
    serve_fields,
    unknown_fields,
    autoscaling_fields,
    upscale_delay,
    bounded_queues,
    import_paths,
    route_prefixes,
    releases,
    engine_settings,
)


@functools.cache
def known_engine_fields() -> frozenset[str]:
    """VLLM's arguments: its import takes seconds, once."""
    return vllm_fields()


def is_ours(path: str) -> bool:
    """Whether an application or deployment is one whose options our builders give."""
    return path.startswith("rag_stack.")


def _parsed(service: Document) -> Any:
    try:
        return yaml.load(str(dig(service, "spec", "serveConfigV2") or ""), Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        return None


def _deployments(overlay: Rendered) -> Iterator[tuple[ServeConfig, str, Document]]:
    """Each deployment that an application overrides, named by the application's path."""
    for each in serve_configs(overlay):
        for application in each.applications:
            for deployment in application.get("deployments") or []:
                yield each, f"{application.get('import_path')} {deployment.get('name')}", deployment


@functools.cache
def _unresolved(path: str) -> str:
    """Why an import path names nothing; empty where it names something."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return "" if hasattr(importlib.import_module(module), name) else f"{module} has no {name}"
    except (ImportError, ValueError) as exc:
        return str(exc)
