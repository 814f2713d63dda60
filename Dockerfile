# Bedplate's server. CPU: docker build --target cpu .   GPU (CUDA wheels of torch bring their own libraries): --target gpu
#   docker run -p 8000:8000 -v bedplate:/data -v ./server.yaml:/config/server.yaml:ro IMAGE
# Bases, the catalogue and the server's state live in /data (BEDPLATE_HOME). Keys are mounted, never built in.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The native kernel is compiled here, for every x86-64 or ARM level; the image that runs has no compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/bedplate
ENV PATH=/opt/bedplate/bin:$PATH
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src

FROM build AS build-cpu
# PIP_EXTRA_INDEX_URL may name an index of CPU-only wheels of torch, which are a tenth of the size.
ARG PIP_EXTRA_INDEX_URL
RUN pip install '.[serve,telemetry]'

FROM build AS build-gpu
RUN pip install '.[serve,telemetry]'

FROM python:3.12-slim AS runtime
RUN useradd --create-home --uid 10001 bedplate && mkdir -p /data /config && chown bedplate:bedplate /data
ENV PATH=/opt/bedplate/bin:$PATH BEDPLATE_HOME=/data PYTHONUNBUFFERED=1
USER bedplate
WORKDIR /home/bedplate
VOLUME ["/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["bedplate"]
CMD ["serve", "--config", "/config/server.yaml"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/bedplate /opt/bedplate
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/bedplate /opt/bedplate
