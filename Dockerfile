# Three images of one version: server, agent and relay. Agent and relay share nothing but the socket's folder.
#   docker build --target server -t fedkd-server .

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /src
RUN pip install --no-cache-dir "build>=1.2,<2"
COPY pyproject.toml LICENSE README.md ./
COPY fedkd fedkd
COPY server server
COPY client client
COPY simulations simulations
RUN python -m build --wheel --outdir /dist .

FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1
# The group may use the agent's socket; a new volume takes over owner and mode of the folder that it is mounted on.
RUN groupadd --gid 10100 door \
    && groupadd --gid 10000 server \
    && useradd --uid 10000 --gid server --no-create-home server \
    && useradd --uid 10001 --gid door --no-create-home agent \
    && useradd --uid 10002 --gid door --no-create-home relay \
    && install -d -o server -g server -m 700 /run/server \
    && install -d -o agent -g door -m 700 /state \
    && install -d -o relay -g door -m 700 /relay \
    && install -d -o agent -g door -m 2750 /door

# Everything, torch too. TORCH_INDEX: a package index with builds for processors alone makes a far smaller image.
FROM base AS full
ARG TORCH_INDEX=""
COPY --from=wheel /dist /dist
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} /dist/*.whl

FROM full AS server
USER 10000:10000
ENTRYPOINT ["fedkd", "server"]
CMD ["/config/server.yaml"]

FROM full AS agent
USER 10001:10100
ENTRYPOINT ["fedkd", "agent"]
CMD ["/config/client.yaml"]

# No torch, no Opacus: the relay carries bytes.
FROM base AS relay
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "flwr>=1.41,<1.43" "grpcio>=1.70,<2" "pydantic>=2.10,<3" "safetensors>=0.5,<1" \
    "click>=8.1,<8.5" \
    && pip install --no-cache-dir --no-deps /dist/*.whl
USER 10002:10100
ENTRYPOINT ["fedkd", "relay"]
CMD ["/config/relay.yaml"]
