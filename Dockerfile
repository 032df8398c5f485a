# syntax=docker/dockerfile:1
# guardlit with CUDA, from the wheels of this clone; docs/install.md says how to run it.
#
#   docker build --tag guardlit .

FROM python:3.12-slim AS wheels
WORKDIR /source
RUN --mount=type=cache,target=/root/.cache/pip pip install "build==1.6.*"
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m build --wheel --outdir /wheels callbacks && python -m build --wheel --outdir /wheels .

# torch's wheels bring CUDA's libraries; the driver is the host's
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
ARG EXTRAS=metrics,ocr,serve
# gcc and Python's headers: torch.compile builds its launchers with them. Ubuntu removes old versions, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 guardlit \
    && install --directory --mode 1777 /cache /data
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv /opt/guardlit \
    && /opt/guardlit/bin/pip install /wheels/guardlit_callbacks-*.whl "$(echo /wheels/guardlit-*.whl)[$EXTRAS]"

# any user may run it (`--user`), who then has no home of their own
ENV PATH=/opt/guardlit/bin:$PATH HOME=/cache HF_HOME=/cache/huggingface GUARDLIT_CACHE=/cache/guardlit
VOLUME /cache
USER 10001
WORKDIR /data
ENTRYPOINT ["guardlit"]
CMD ["--help"]
