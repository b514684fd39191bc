# The image of `routecast serve`. Whatever it holds is named by hash in locks/.
# tests/integration/test_image_recipe.py carries out the steps of the build stage without an engine: they keep to COPY, ENV,
# WORKDIR and RUN, and write below /build and /opt only.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /build/src
COPY locks locks
RUN python -m venv /build/tools \
 && /build/tools/bin/pip install --quiet --require-hashes -r locks/uv.txt
# Dependencies first: this layer outlives changes of the source.
RUN python -m venv --without-pip /opt/routecast \
 && /build/tools/bin/uv pip sync --quiet --python /opt/routecast/bin/python --compile-bytecode --require-hashes locks/runtime.txt
COPY . .
RUN /build/tools/bin/uv build --quiet --wheel --out-dir /build/dist --python /opt/routecast/bin/python \
      --build-constraints locks/dev.txt --require-hashes \
 && /build/tools/bin/uv pip install --quiet --python /opt/routecast/bin/python --compile-bytecode --no-index --no-deps \
      /build/dist/routecast-*.whl

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="routecast" \
      org.opencontainers.image.description="A gRPC router for AI requests that moves traffic before a provider fails" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 routecast \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/routecast --no-create-home --shell /usr/sbin/nologin routecast \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/routecast
COPY --from=build /opt/routecast /opt/routecast
ENV PATH=/opt/routecast/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/routecast
VOLUME /var/lib/routecast
EXPOSE 50051 8088
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 \
  CMD ["routecast", "health", "--address", "127.0.0.1:50051"]
ENTRYPOINT ["routecast"]
CMD ["serve", "--config", "/etc/routecast/routecast.yaml"]
