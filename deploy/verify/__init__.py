"""What can be known about deploy/kuberay without a cluster: `python -m deploy.verify [OVERLAY...]`.

rendered            what an overlay applies, and the form of a rule and of a finding
render              every overlay by kustomize, every loose file
pod_template        every pod that would run, whoever starts it
ray_cluster         every Ray cluster, its groups
prerequisite        what the cluster's owner brings: secrets, storage classes, an operator's Services
-- CHECKS, a column of the table each --
core_schema         Kubernetes' own kinds, strictly
crd_schema          custom kinds, by the schema of their definition
cel_rule            and by the definition's rules
operator_rule       what KubeRay refuses although its schema does not
reference, selector, snapshot    names that must exist, labels that must match
rbac                verbs that programs need, and no more
pod_security        the restricted profile, requests, limits, tags
serve_config        serveConfigV2: Serve's schema, our release, vLLM's arguments
size                the numbers that are said in several places
job                 what jobs warm, and how long they wait
environment         what processes read in it, and that a change of it starts new pods
monitor, metric     the ports that Prometheus asks; the series that rules and dashboards ask for
expression, series  what PromQL names, and what our processes tell
autoscaler          Ray's own reading of a cluster: node types, and that everything fits one
-- REPORT --
check, table        all checks over all overlays, as a table
mistake...          seeded mistakes, each of which a check must find
server              opt-in: a dry run on a real API server
"""
