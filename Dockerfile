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
# No root inside, and a number, which is what Kubernetes' runAsNonRoot can check.
RUN groupadd --gid 10001 runner && useradd --create-home --uid 10001 --gid 10001 runner
WORKDIR /app

# The dependencies change less often than the code: they get a layer of their own.
COPY requirements/runtime.txt ./
RUN pip install --no-cache-dir --require-hashes --requirement runtime.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl && rm -r /wheels

COPY configs ./configs
USER 10001:10001

# `exec` form: the runner gets the signals itself, and drains on SIGTERM.
ENTRYPOINT ["runner"]
CMD ["start", "-c", "configs/prod.yaml"]
