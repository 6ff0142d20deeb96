"""Releases as published versions: what is pinned together, what serves, and how one takes over from another.

pinned      a release with every version and digest filled in, and what of it belongs to a deployment instead
published   its versions in the catalog
plan        the one object that moves in a rollout: which version serves, which takes over, and its share
progress    what comes next, from the plan and what was seen
rollout     applying, advancing and rolling back: the plan and the promoted pointer together
kv_cache, kv_simulation, kv_trace   vLLM's prefix cache without an engine, and the requests that it is tried on
kv_plan, kv_rate, kv_metrics        what a workload needs of that cache, and what an offload would gain
compatibility, difference   whether a release fits together, and what it changes
"""
