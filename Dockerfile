# Three images: `cpu` and `cuda` run the pipeline, `mlflow` is MLflow's server with the drivers that its own image lacks.
FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 selftrain
WORKDIR /app

FROM base AS mlflow
COPY constraints.txt ./
RUN pip install -c constraints.txt "mlflow[auth]==3.17.2" psycopg2-binary boto3
USER selftrain
EXPOSE 5000

FROM base AS cpu
ARG TORCH_INDEX=""
# Torch alone, first: its layer stays while the code changes.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11" torchvision
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY selftrain selftrain
COPY flows flows
COPY ssl_tasks ssl_tasks
COPY models models
COPY configs configs
RUN pip install -c constraints.txt ".[s3]" && mkdir /workspace && chown selftrain /workspace
WORKDIR /workspace
USER selftrain
VOLUME /workspace

# PyTorch's default wheels carry CUDA; the host lends its driver (nvidia-container-toolkit).
FROM cpu AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
