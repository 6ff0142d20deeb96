"""Every expression of the rules and dashboards, answered by a real Prometheus that scrapes the running stack."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import yaml

from deploy.dashboards import DASHBOARDS
from deploy.dashboards.grafana import expressions
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.index.spec import load_spec
from rag_stack.jobs.build import GateRefusedError
from rag_stack.jobs.index_build import build_index
from rag_stack.metrics import MemoryRecorder
from tests.e2e.conftest import Stack, artifacts_of
from tests.prometheus import MONITORING, Prometheus, prometheus, rule_groups

pytestmark = pytest.mark.e2e

MODEL = "smollm2-135m-instruct"
QUESTION = "What does the with statement do in Python?"
# The admin application looks into the catalog every fifteen seconds, Ray exports every five or so.
LIMIT_S = 90.0
_COMPARED = re.compile(r" (==|>|<) (?!bool)")


@pytest.fixture(scope="module")
def observed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus on the stack, with our rules, while the stack is asked, swaps an index and has one refused."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [_every_second(group) for group in rule_groups()]}))
    with prometheus(folder, _config(stack)) as running:
        # Counters are there from the start; what is asked from now on is seen to make them grow.
        assert (
            running.answered(["ray_rag_stack_answers_total", "haproxy_backend_http_responses_total"], limit_s=60) == []
        )
        _use(stack)
        yield running


def test_every_recording_rule_has_data(observed: Prometheus) -> None:
    rules = [rule for group in rule_groups() for rule in group["rules"] if "record" in rule]
    assert observed.answered([rule["record"] for rule in rules], limit_s=LIMIT_S) == []


def test_every_alert_would_have_something_to_compare(observed: Prometheus) -> None:
    alerts = [rule["expr"] for group in rule_groups() for rule in group["rules"] if "alert" in rule]
    # With `bool` a comparison answers 0 or 1 for each series that there is, and nothing only where there is none.
    assert observed.answered([_COMPARED.sub(r" \1 bool ", alert) for alert in alerts], limit_s=LIMIT_S) == []


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_every_panel_has_data(observed: Prometheus, dashboard: Any) -> None:
    assert observed.answered(list(expressions(dashboard)), limit_s=LIMIT_S) == []


def test_what_was_done_is_what_is_shown(observed: Prometheus) -> None:
    (goodput,) = observed.query("rag_stack:goodput:ratio5m")
    assert 0 <= float(goodput["value"][1]) <= 1
    (ttft,) = observed.query("rag_stack:ttft_seconds:p50")
    assert 0 < float(ttft["value"][1]) < 60
    (age,) = observed.query("rag_stack:index_age_seconds:max")
    assert age["metric"]["store"] == "python"
    # The version that the strict gate refused is the newest one.
    assert (
        observed.answered(['max by (store) (ray_rag_stack_index_failed_gates{store="python"}) == 1'], limit_s=30) == []
    )
    assert observed.answered(['max by (store) (ray_rag_stack_index_unpromoted{store="python"}) == 1'], limit_s=30) == []
    assert observed.query('max(ray_rag_stack_engine_state{state="ready"}) == 1')
    assert observed.query('max(ray_rag_stack_release_rollout_state{state="steady"}) == 1')
    pending = {alert["metric"]["alertname"] for alert in observed.query("ALERTS")}
    assert pending <= {"RagStackGateFailed", "RagStackTtftHigh", "RagStackLoadSlow"}


def _use(stack: Stack) -> None:
    """Questions, a search, a new index version, and one that its gates refuse."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="-", timeout=120) as client:
        for streamed in (True, True, False):
            answer: Any = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=16, stream=streamed
            )
            if streamed:
                list(answer)
        client.vector_stores.search("python", query=QUESTION)
        document = stack.documents / "while.txt"
        # New in each run: a version that an earlier run has left in the kept object store would not be the newest one.
        document.write_text(document.read_text() + f"\nA while statement may be observed {time.time_ns()} times.\n")
        tiers = open_tiers(artifacts_of(stack.release), MemoryRecorder())
        spec = stack.release.parent / "python.yaml"
        build_index(load_spec(spec), tiers=tiers, workers=1)
        strict = spec.with_name("strict.yaml")
        strict.write_text(spec.read_text() + "gates: {min_documents: 100000}\n")
        with pytest.raises(GateRefusedError):
            build_index(load_spec(strict), tiers=tiers, workers=1)
        # After the build, so that the rates of the last minute have something in it.
        client.vector_stores.search("python", query=QUESTION)
        for _ in range(2):
            list(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=16, stream=True
                )
            )


def _config(stack: Stack) -> dict[str, Any]:
    """What the operator makes of our PodMonitors, for a pod that has all ports."""
    documents = yaml.safe_load_all((MONITORING / "pod-monitors.yaml").read_text())
    head = next(each for each in documents if each["metadata"]["name"] == "rag-stack-head")
    relabelings = {
        str(endpoint.get("port", "haproxy")): [_relabeling(each) for each in endpoint.get("metricRelabelings", ())]
        for endpoint in head["spec"]["podMetricsEndpoints"]
    }
    targets = {"metrics": stack.metrics_url, "haproxy": stack.haproxy_metrics_url}
    return {
        "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": name,
                "static_configs": [{"targets": [urlsplit(url).netloc]}],
                "metric_relabel_configs": relabelings[name],
            }
            for name, url in targets.items()
        ],
    }


def _relabeling(of_operator: Mapping[str, Any]) -> dict[str, Any]:
    return {"source_labels" if key == "sourceLabels" else key: value for key, value in of_operator.items()}


def _every_second(group: Mapping[str, Any]) -> dict[str, Any]:
    return {**group, "interval": "1s"}
