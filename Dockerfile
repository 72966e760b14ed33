FROM python:3.13-slim

# No root inside, and a directory of its own for a SQLite file or a lock.
RUN useradd --create-home --uid 10001 runner
WORKDIR /app

# The dependencies change less often than the code: they get a layer of their own.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY runner ./runner
COPY migrations ./migrations
RUN pip install --no-cache-dir --constraint constraints.txt .

COPY configs ./configs
USER runner

# `exec` form: the runner gets the signals itself, and drains on SIGTERM.
ENTRYPOINT ["runner"]
CMD ["start", "-c", "configs/prod.yaml"]
