# hfprep with everything that a build needs; models and data are mounted when it runs (docs/install.md).
#
#   docker build --target cpu --build-arg TORCH_INDEX=URL --tag hfprep:cpu .     URL: PyTorch's CPU wheels
#   docker build --target cuda --tag hfprep:cuda .

FROM python:3.12-slim AS source
WORKDIR /source
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY hfprep hfprep
COPY schemas schemas

FROM source AS cpu
ARG TORCH_INDEX
RUN pip install --no-cache-dir torch --index-url "$TORCH_INDEX"
RUN pip install --no-cache-dir '.[build]'
RUN pip install --no-cache-dir --no-deps WeTextProcessing==1.0.4.1
WORKDIR /data
ENTRYPOINT ["hfprep"]

# PyTorch's wheels contain the CUDA libraries, so the host only provides the driver. Triton compiles its kernels' launchers
# with a C compiler when they first run.
FROM source AS cuda
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
RUN pip install --no-cache-dir --no-deps .
WORKDIR /data
ENTRYPOINT ["hfprep"]
