"""The picture of `loadtests.routing`: what is cached against the first token, and what forwarding costs."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from loadtests.routing_haproxy import ARMS, SIZES

_COLOURS = ("#4c8fbd", "#d1603d", "#7fb069", "#8c8c8c")


def draw(arms: Mapping[str, Mapping[str, float]], *, replicas: Sequence[int]) -> Figure:
    """Left: each policy's cached share and median time to first token. Right: CPU of a request by its body's size."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for count, colour in zip(replicas, _COLOURS, strict=False):
        ending = f", {count} replicas"
        for arm, found in arms.items():
            if arm.endswith(ending):
                left.plot(found["cached_share"], found["ttft_ms"], "o", color=colour)
                name = arm.removesuffix(ending)
                left.annotate(
                    name, (found["cached_share"], found["ttft_ms"]), (4, 3), textcoords="offset points", size=7
                )
        left.plot([], [], "o", color=colour, label=f"{count} replicas")
    left.set_xlabel("share of prompt tokens that were cached")
    left.set_ylabel("median time to first token, ms (simulated)")
    left.legend(frameon=False)
    left.set_title("Which replica a question goes to")
    for name, colour in zip(ARMS, _COLOURS, strict=False):
        found = [arms.get(f"forward {name}, {size >> 10} KiB", {}) for size in SIZES]
        cpu_ms = [each.get("haproxy_cpu_ms", 0.0) + each.get("router_cpu_ms", 0.0) for each in found]
        right.plot([size / 1024 for size in SIZES], cpu_ms, "o-", color=colour, label=f"forward {name}")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("body, KiB")
    right.set_ylabel("CPU of HAProxy and router, ms a request")
    right.legend(frameon=False)
    right.set_title("What the router's look at the body costs")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
