# Built from locked and hashed packages alone, on an image that is named by its digest: docs/decisions/0045-what-an-image-is-made-of.md
ARG PYTHON=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${PYTHON} AS build
WORKDIR /build
COPY requirements/build.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY runner ./runner
COPY migrations ./migrations
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON}
# No root inside, and a number, which is what Kubernetes' runAsNonRoot can check. The directory is for a volume with SQLite,
# which takes its owner over; nothing else is written, so that the root file system may be read-only.
RUN groupadd --gid 10001 runner && useradd --create-home --uid 10001 --gid 10001 runner \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/runner
WORKDIR /app

# The dependencies change less often than the code: they get a layer of their own.
COPY requirements/runtime.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement runtime.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl && rm -r /wheels

COPY configs ./configs
USER 10001:10001

# A loop that hangs or a blocked event loop is a 503. Not through a proxy, nor with what is in the working directory.
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=5); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

# `exec` form: the runner gets the signals itself, and drains on SIGTERM.
ENTRYPOINT ["runner"]
CMD ["start", "-c", "configs/prod.yaml", "--set", "api.listen=127.0.0.1:8080"]
