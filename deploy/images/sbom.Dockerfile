# The software bill of materials of a built image, as CycloneDX: `deploy/images/build.sh sbom IMAGE FOLDER`.
# The tool stands beside the image's environment and not in it.
ARG IMAGE=rag-stack:0.1.0

FROM ${IMAGE} AS sbom
USER 0:0
COPY requirements/cpu.lock /opt/sbom.lock
RUN python3.11 -m venv --without-pip /opt/sbom \
 && python3.11 -m pip --python /opt/sbom/bin/python install --quiet --no-cache-dir --only-binary :all: \
    --constraint /opt/sbom.lock cyclonedx-bom \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.json /opt/rag-stack/bin/python
USER 1000:1000

FROM scratch AS file
COPY --from=sbom /sbom.json /
