# For a host with NVIDIA GPUs and the container toolkit:
#     docker build -t speckv . && docker run --gpus all --shm-size 16g -p 30000:30000 speckv \
#         --model-path TARGET --speculative-algorithm EAGLE3 --speculative-draft-model-path HEAD --speckv
# Nobody has built it on a device yet. SGLang compiles kernels at the first start, hence -devel.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv libnuma1 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/speckv
ENV PATH=/opt/speckv/bin:$PATH VIRTUAL_ENV=/opt/speckv
WORKDIR /src
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY sglang_speckv sglang_speckv
RUN pip install --no-cache-dir uv==0.13.9 && uv pip install --no-cache --compile-bytecode -r requirements.lock \
    && uv pip install --no-cache --no-deps .
EXPOSE 30000
ENTRYPOINT ["speckv", "serve", "--host", "0.0.0.0"]
