# syntax=docker/dockerfile:1

# pgsched alone. Add an application in an image of its own:
#
#   FROM pgsched
#   COPY app.py /app/                       the working directory is importable: this is `pgsched run app.factory`
#   CMD ["run", "app.factory"]
#
# and where it needs packages:
#
#   FROM pgsched
#   USER root
#   COPY requirements.txt /app/
#   RUN pip install --no-cache-dir -r /app/requirements.txt
#   USER 10001:10001
#
# Or the other way round, in the image that the application has already: RUN pip install pgsched, the ENV,
# ENTRYPOINT, STOPSIGNAL and HEALTHCHECK from below, and the exec form throughout: a shell as the first process
# passes no SIGTERM on, and every stop would end with SIGKILL instead of a drain.
#
#   docker build --tag pgsched .
#   docker run --read-only --tmpfs /tmp --stop-timeout 90 --env PGSCHED_DSN=postgresql://... my-app
#
# A stop may take twice drain_timeout (30 s) and cancel_timeout (5 s); the engine's own patience is 10 s unless it
# is told (--stop-timeout, stop_grace_period, terminationGracePeriodSeconds).
# Where jobs start programs that leave orphans behind, add --init: pgsched as the first process reaps none.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY pgsched ./pgsched
# "" or "[embedded]", for a PostgreSQL in the container; its data then want a volume and PGSCHED_DATA_DIR.
ARG EXTRAS=""
RUN pip wheel --no-deps --wheel-dir /dist . \
 && python -m venv /opt/pgsched \
 && /opt/pgsched/bin/pip install "$(echo /dist/pgsched-*.whl)${EXTRAS}"

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="pgsched" \
      org.opencontainers.image.description="A scheduler daemon on PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# A number that stays, for volumes and for runAsNonRoot, and an entry in passwd: libpq and PostgreSQL look for one.
RUN groupadd --system --gid 10001 pgsched \
 && useradd --system --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin pgsched \
 && install --directory /app
COPY --from=build /opt/pgsched /opt/pgsched
# No byte code is written at run time: the root may be read-only, and pip has compiled what there is.
ENV PATH=/opt/pgsched/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PGSCHED_HEALTH_FILE=/tmp/pgsched.health
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
# Whether the event loop turns. It asks no database, so that an outage of that restarts no container.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["pgsched", "health", "--live"]
ENTRYPOINT ["pgsched"]
CMD ["--help"]
