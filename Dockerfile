# syntax=docker/dockerfile:1

# pgsched alone. Add an application in an image of its own:
#
#   FROM pgsched
#   COPY app.py /app/                       the working directory is importable: this runs `pgsched run app.factory`
#   CMD ["run", "app.factory"]
#
# If it needs packages:
#
#   FROM pgsched
#   USER root
#   COPY requirements.txt /app/
#   RUN pip install --no-cache-dir -r /app/requirements.txt
#   USER 10001:10001
#
# Or add pgsched to the application's own image: RUN pip install pgsched, and the ENV, ENTRYPOINT, STOPSIGNAL and
# HEALTHCHECK from below. Use the exec form throughout: a shell as the first process passes no SIGTERM on, and every
# stop would end with SIGKILL instead of a drain.
#
#   docker build --tag pgsched .
#   docker run --read-only --tmpfs /tmp --stop-timeout 90 --env PGSCHED_DSN=postgresql://... my-app
#
# A stop may take twice drain_timeout (30 s) and cancel_timeout (5 s). The engine waits 10 s by default: raise that with
# --stop-timeout, stop_grace_period or terminationGracePeriodSeconds.
# If jobs start programs that leave orphans behind, add --init: pgsched as the first process reaps none.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY pgsched ./pgsched
# "" or "[embedded]", for a PostgreSQL in the container; its data then need a volume and PGSCHED_DATA_DIR.
ARG EXTRAS=""
RUN pip wheel --no-deps --wheel-dir /dist . \
 && python -m venv /opt/pgsched \
 && /opt/pgsched/bin/pip install "$(echo /dist/pgsched-*.whl)${EXTRAS}"

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="pgsched" \
      org.opencontainers.image.description="A scheduler daemon on PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# A fixed user id, for volumes and runAsNonRoot, with an entry in passwd, since libpq and PostgreSQL look for one.
RUN groupadd --system --gid 10001 pgsched \
 && useradd --system --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin pgsched \
 && install --directory /app
COPY --from=build /opt/pgsched /opt/pgsched
# No byte code is written at run time: the root may be read-only, and pip has compiled all modules.
ENV PATH=/opt/pgsched/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PGSCHED_HEALTH_FILE=/tmp/pgsched.health
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
# Checks that the event loop turns. It asks no database, so that an outage of the database restarts no container.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["pgsched", "health", "--live"]
ENTRYPOINT ["pgsched"]
CMD ["--help"]
