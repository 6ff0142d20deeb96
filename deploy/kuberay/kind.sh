#!/usr/bin/env bash
# Runs on a cluster what was checked without one. Not run here: it needs Docker, kind, kubectl, helm, jq, git and openssl,
# the network, 8 CPUs and 24 GiB for Docker; the upgrades, which have two clusters at once, need 40 GiB and are skipped with less.
# Whoever runs it first should expect to correct it.
#
#   deploy/kuberay/kind.sh                 about an hour; the cluster is deleted at the end
#   KEEP=1 deploy/kuberay/kind.sh          the cluster stays: kind delete cluster --name rag-stack
#   PROMETHEUS=1 VELERO=1 GATEWAY=1        also those
#
# Each step has a limit and ends in one line: PASS, FAIL or SKIP, its name, its seconds. Exit code 1 when one has failed. A step
# without which the next ones say nothing ends the run.
# What it covers and this repository's tests do not: kubelet, CSI and snapshots, the KubeRay operator, admission by pod
# security, network policies, evictions, image builds; with the flags the Prometheus operator, Velero, a Gateway.
# Its functions are called by name, by the traps and the steps.
# shellcheck disable=SC2329
set -euo pipefail
cd "$(dirname "$0")/../.."

export NAME=rag-stack NS=rag-stack PORT=${PORT:-18000}
export VERSION=${VERSION:-0.1.0} KUBERAY=1.7.0 SNAPSHOTTER=v8.6.0 HOSTPATH=v1.17.0
export NODE_IMAGE=${NODE_IMAGE:-kindest/node:v1.35.0}
export QUESTION="What does the with statement do in Python?"
# A context of its own: what the caller's kubectl points at is left alone.
KUBECONFIG=$(mktemp) && export KUBECONFIG
SCRATCH=$(mktemp -d) && export SCRATCH
# kustomize wants its bases at relative paths.
OVERLAY=$(mktemp -d deploy/kuberay/kind.XXXXXX) && export OVERLAY
API_KEY=$(openssl rand -hex 24) && export API_KEY
failed=0

end() {
    rm -rf "$OVERLAY"
    if [ "${KEEP:-0}" = 1 ]; then
        echo "kept: KUBECONFIG=$KUBECONFIG kubectl -n $NS get rayservice,pod"
    else
        kind delete cluster --name "$NAME" >/dev/null 2>&1 || true
        rm -rf "$SCRATCH" "$KUBECONFIG"
    fi
}
trap end EXIT

step() { # NAME LIMIT_S FUNCTION
    local name=$1 limit=$2 function=$3 start=$SECONDS
    if timeout "$limit" bash -euo pipefail -c "$function" >"$SCRATCH/$function.log" 2>&1; then
        echo "PASS  $name  $((SECONDS - start)) s  $(tail -n 1 "$SCRATCH/$function.log")"
        return 0
    fi
    failed=1
    echo "FAIL  $name  $((SECONDS - start)) s of $limit"
    tail -n 20 "$SCRATCH/$function.log" | sed 's/^/      /'
    return 1
}

must() {
    step "$@" || exit 1
}

# Two clusters side by side: about 32 GiB of pods.
step_with_room() { # NAME LIMIT_S FUNCTION
    local bytes
    bytes=$(docker info --format '{{.MemTotal}}')
    if [ "$bytes" -lt $((40 << 30)) ]; then
        echo "SKIP  $1  Docker has $((bytes >> 30)) GiB of 40"
        return 0
    fi
    step "$@"
}

# --- what the steps share -------------------------------------------------------------------------------------------
# They run in a shell of their own, under their limit.

k() { kubectl --namespace "$NS" "$@"; }

pod_of() { k get pod --selector "app.kubernetes.io/component=$1" --output name | head -n 1; }

# Delete a pod, and wait until another one in its place is ready: what was ready before says nothing.
replace_pod() { # COMPONENT DELETE_OPTION...
    local component=$1 old
    shift
    old=$(k get "$(pod_of "$component")" --output jsonpath='{.metadata.uid}')
    k delete "$(pod_of "$component")" "$@"
    until k get pod --selector "app.kubernetes.io/component=$component" --output json | jq --exit-status --arg old "$old" \
        '[.items[] | select(.metadata.uid != $old and .metadata.deletionTimestamp == null)
            | .status.conditions[]? | select(.type == "Ready" and .status == "True")] | length > 0' >/dev/null; do
        sleep 2
    done
}

# The stack as it is deployed here, in every step that applies it. The volume is csi-hostpath's, for its snapshots.
write_overlay() { # COMPONENT...
    {
        cat <<'YAML'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../overlays/dev]
patches:
  - target: {kind: PersistentVolumeClaim, name: rag-stack-artifacts}
    patch: '[{op: add, path: /spec/storageClassName, value: csi-hostpath-sc}]'
components:
YAML
        printf '  - ../components/%s\n' "$@"
    } >"$OVERLAY/kustomization.yaml"
}

active_cluster() { k get rayservice rag-stack --output jsonpath='{.status.activeServiceStatus.rayClusterName}'; }

ready() {
    k wait rayservice/rag-stack --for=condition=Ready --timeout=1200s
    k get rayservice rag-stack --output jsonpath='{.status.serviceStatus}{"\n"}'
}

# One cited answer, through a port-forward of its own. A held request hears heartbeats meanwhile.
ask() { # SERVICE PORT
    k port-forward "svc/$1" "$PORT:$2" >/dev/null &
    local forward=$!
    # shellcheck disable=SC2064  # this process, now
    trap "kill $forward 2>/dev/null || true" RETURN EXIT
    rm -f "$SCRATCH/answer.json"
    # Joined, since `ask ... ||` turns `set -e` off. The forward takes a moment to listen, which the retries are for.
    curl --silent --show-error --fail --retry 5 --retry-delay 2 --retry-connrefused --max-time 600 \
        --header "Authorization: Bearer $API_KEY" --header 'Content-Type: application/json' \
        --data "$(jq -n --arg q "$QUESTION" '{model: "smollm2-135m-instruct", max_tokens: 160,
            messages: [{role: "user", content: $q}]}')" --output "$SCRATCH/answer.json" \
        "http://127.0.0.1:$PORT/v1/chat/completions" &&
        jq --exit-status '.rag.citations | length > 0' "$SCRATCH/answer.json" >/dev/null &&
        jq --raw-output '"\(.rag.citations | length) citations from \(.rag.index_version)"' "$SCRATCH/answer.json"
}

export -f k pod_of replace_pod write_overlay active_cluster ready ask

# --- the steps ------------------------------------------------------------------------------------------------------

make_cluster() {
    kind create cluster --name "$NAME" --image "$NODE_IMAGE" --kubeconfig "$KUBECONFIG" --wait 180s --config - <<'YAML'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
  - role: worker
  - role: worker
YAML
    kubectl version
}

make_images() {
    deploy/images/build.sh cpu
    deploy/images/build.sh demo
    kind load docker-image "rag-stack:$VERSION" "rag-stack-demo:$VERSION" --name "$NAME"
}

install_operator() {
    helm upgrade --install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ \
        --version "$KUBERAY" --namespace kuberay-system --create-namespace --wait
    kubectl get crd rayservices.ray.io rayclusters.ray.io rayjobs.ray.io --output name | wc -l
}

install_snapshots() {
    local source=https://github.com/kubernetes-csi
    kubectl apply --kustomize "$source/external-snapshotter/client/config/crd?ref=$SNAPSHOTTER"
    kubectl apply --kustomize "$source/external-snapshotter/deploy/kubernetes/snapshot-controller?ref=$SNAPSHOTTER"
    git clone --quiet --depth 1 --branch "$HOSTPATH" "$source/csi-driver-host-path" "$SCRATCH/hostpath"
    "$SCRATCH/hostpath/deploy/kubernetes-latest/deploy.sh"
    kubectl apply --filename "$SCRATCH/hostpath/examples/csi-storageclass.yaml"
    kubectl get storageclass csi-hostpath-sc
    kubectl get volumesnapshotclass csi-hostpath-snapclass
}

install_monitoring() {
    if [ "${PROMETHEUS:-0}" = 1 ]; then
        helm upgrade --install monitoring kube-prometheus-stack --namespace monitoring --create-namespace --wait \
            --repo https://prometheus-community.github.io/helm-charts \
            --set prometheus.prometheusSpec.podMonitorSelectorNilUsesHelmValues=false \
            --set prometheus.prometheusSpec.ruleSelectorNilUsesHelmValues=false
    else
        kubectl apply --server-side --filename \
            https://github.com/prometheus-operator/prometheus-operator/releases/download/v0.93.0/stripped-down-crds.yaml
    fi
}

apply_stack() {
    kubectl create namespace "$NS" --dry-run=client --output yaml | kubectl apply --filename -
    printf '%s\n' "$API_KEY" >"$SCRATCH/api"
    openssl rand -hex 24 >"$SCRATCH/admin"
    k create secret generic rag-stack-keys --from-file=api="$SCRATCH/api" --from-file=admin="$SCRATCH/admin"
    k create secret generic rag-stack-ray-token --from-literal=auth_token="$(openssl rand -hex 32)"
    k create secret generic rag-stack-redis --from-literal=password="$(openssl rand -hex 24)"
    write_overlay activator monitoring
    kubectl apply --kustomize "$OVERLAY"
    k get rayservice rag-stack
}

ask_stack() { ask rag-stack-serve-svc 8000; }

# A pod of a namespace without the label is a stranger. That one with the label gets an answer to the same question shows that it is
# the policy, and no wrong name, that keeps the stranger out.
refuse_strangers() {
    local asks="wget --tries 1 --timeout 10 --quiet --output-document - http://rag-stack-serve-svc.$NS:8000/health"
    kubectl create namespace friends
    kubectl label namespace friends rag-stack/client=true
    kubectl --namespace friends run friend --image "rag-stack:$VERSION" --restart Never --rm --attach --quiet --command -- \
        bash -c "$asks"
    kubectl --namespace default run stranger --image "rag-stack:$VERSION" --restart Never --rm --attach --quiet --command -- \
        bash -c "! $asks"
}

kill_engine_pod() {
    replace_pod engine --grace-period 0 --force
    ask rag-stack-serve-svc 8000
}

kill_head_pod() {
    local before
    before=$(active_cluster)
    replace_pod head
    # The RayService may be called Ready still for what was before: an answer says more.
    until (ask rag-stack-serve-svc 8000); do sleep 5; done
    ready
    echo "cluster $before, then $(active_cluster)"
}

# The budgets make a drain wait for one pod each; deleting them is what the runbook says. The volume is of this node, so
# that the pods come back when it does.
drain_node() {
    local node
    node=$(k get "$(pod_of engine)" --output jsonpath='{.spec.nodeName}')
    if kubectl drain "$node" --ignore-daemonsets --delete-emptydir-data --timeout=60s; then
        echo "expected the disruption budgets to hold up the drain of $node; it went through" >&2
        return 1
    fi
    k delete pod --selector app.kubernetes.io/part-of=rag-stack --field-selector "spec.nodeName=$node" --wait=false
    kubectl drain "$node" --ignore-daemonsets --delete-emptydir-data --timeout=400s
    kubectl uncordon "$node"
    ready
    ask rag-stack-serve-svc 8000
}

# A changed pod starts a second cluster; questions go on meanwhile.
upgrade_stack() {
    local before asked=0 lost=0
    before=$(active_cluster)
    k patch rayservice rag-stack --type merge --patch '{"spec": {"upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": {"headGroupSpec": {"template": {"metadata": {"annotations": {"rag-stack/upgrade": "1"}}}}}}}'
    until [ "$(active_cluster)" != "$before" ]; do
        asked=$((asked + 1))
        (ask rag-stack-serve-svc 8000) || lost=$((lost + 1))
        sleep 5
    done
    ready
    ask rag-stack-serve-svc 8000
    echo "$asked questions during the upgrade, $lost not answered after retries"
    [ "$lost" = 0 ]
}

# Level 2: nothing of Ray is left, and a question to the activator's service brings it back and is held meanwhile. The annotation is
# an activator's mark: without it nobody but a person may wake it.
suspend_and_wake() {
    local start
    k patch rayservice rag-stack --type merge --patch '{"metadata": {"annotations": {"rag-stack.dev/suspended-by": "kind"}},
        "spec": {"suspend": true}}'
    until [ "$(k get raycluster --output name | wc -l)" = 0 ]; do sleep 2; done
    start=$SECONDS
    ask rag-stack 80
    echo "woken by one question in $((SECONDS - start)) s"
}

# A point, a snapshot of the artifacts' volume, a volume from it, and the drill on that.
restore_snapshot() {
    k exec "$(pod_of head)" --container ray-head -- rag-stack backup point --label kind
    k apply --filename - <<'YAML'
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: rag-stack-artifacts}
spec:
  volumeSnapshotClassName: csi-hostpath-snapclass
  source: {persistentVolumeClaimName: rag-stack-artifacts}
YAML
    k wait volumesnapshot/rag-stack-artifacts --for=jsonpath='{.status.readyToUse}'=true --timeout=300s
    k apply --filename - <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: rag-stack-restored}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: csi-hostpath-sc
  dataSourceRef: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: rag-stack-artifacts}
  resources: {requests: {storage: 10Gi}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: restore-drill}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: drill
          image: rag-stack:$VERSION
          command: [rag-stack, drill, restore, --from, "file:///artifacts", --verify]
          envFrom: [{configMapRef: {name: rag-stack-environment}}]
          securityContext:
            {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: artifacts, mountPath: /artifacts}, {name: scratch, mountPath: /tmp}]
      volumes:
        - {name: artifacts, persistentVolumeClaim: {claimName: rag-stack-restored}}
        - {name: scratch, emptyDir: {}}
YAML
    k wait job/restore-drill --for=condition=Complete --timeout=600s
    k logs job/restore-drill
}

scrape_metrics() {
    kubectl --namespace monitoring port-forward svc/prometheus-operated "$((PORT + 1)):9090" >/dev/null &
    # shellcheck disable=SC2064  # this process, now
    trap "kill $! 2>/dev/null || true" EXIT
    until curl --silent --fail --get "http://127.0.0.1:$((PORT + 1))/api/v1/query" \
        --data-urlencode 'query=count(up{namespace="rag-stack"} == 1)' | jq --exit-status '.data.result[0].value[1] | tonumber >= 3'; do
        sleep 5
    done
}

# VELERO_VALUES: a values file of the chart with a place for backups and its credentials. The schedule is components/backup's.
backup_with_velero() {
    helm upgrade --install velero velero --repo https://vmware-tanzu.github.io/helm-charts --namespace velero \
        --create-namespace --values "${VELERO_VALUES:?expected a values file for the chart}" --wait
    write_overlay activator monitoring backup
    kubectl apply --kustomize "$OVERLAY"
    kubectl --namespace velero create --filename - <<'YAML'
apiVersion: velero.io/v1
kind: Backup
metadata: {name: rag-stack-kind}
spec: {includedNamespaces: [rag-stack], ttl: 24h0m0s}
YAML
    kubectl --namespace velero wait backup/rag-stack-kind --for=jsonpath='{.status.phase}'=Completed --timeout=900s
}

# Traffic moves to the new cluster step by step.
upgrade_through_gateway() {
    local before
    helm upgrade --install eg oci://docker.io/envoyproxy/gateway-helm --version v1.6.0 \
        --namespace envoy-gateway-system --create-namespace --wait
    kubectl apply --filename - <<'YAML'
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: rag-stack}
spec: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
YAML
    before=$(active_cluster)
    k patch rayservice rag-stack --type merge --patch '{"spec": {"upgradeStrategy":
        {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions":
            {"gatewayClassName": "rag-stack", "stepSizePercent": 50, "intervalSeconds": 30, "maxSurgePercent": 100}},
        "rayClusterConfig": {"headGroupSpec": {"template": {"metadata": {"annotations": {"rag-stack/upgrade": "2"}}}}}}}'
    until [ "$(active_cluster)" != "$before" ]; do sleep 5; done
    ready
    k get gateway,httproute
}

export -f make_cluster make_images install_operator install_snapshots install_monitoring apply_stack ask_stack \
    refuse_strangers kill_engine_pod kill_head_pod drain_node upgrade_stack suspend_and_wake restore_snapshot \
    scrape_metrics backup_with_velero upgrade_through_gateway

must "cluster" 400 make_cluster
must "images built and loaded" 3000 make_images
must "operator" 400 install_operator
must "snapshots and csi-hostpath" 600 install_snapshots
must "monitoring" 900 install_monitoring
must "secrets and overlay dev" 120 apply_stack
must "ready, models and index published" 1500 ready
must "cited answer" 700 ask_stack
step "strangers are refused" 120 refuse_strangers || true
step "engine pod killed" 900 kill_engine_pod || true
step "head pod killed" 1500 kill_head_pod || true
step "node drained" 1800 drain_node || true
step_with_room "upgrade" 2400 upgrade_stack || true
step "suspended and woken" 1500 suspend_and_wake || true
step "snapshot and restore drill" 1200 restore_snapshot || true
[ "${PROMETHEUS:-0}" = 1 ] && { step "metrics in Prometheus" 300 scrape_metrics || true; }
[ "${GATEWAY:-0}" = 1 ] && { step_with_room "upgrade through a Gateway" 2400 upgrade_through_gateway || true; }
[ "${VELERO:-0}" = 1 ] && { step "Velero" 1800 backup_with_velero || true; }
exit "$failed"
