#!/usr/bin/env bash
# Checks everything in deploy/ as far as this machine can: with a Docker engine the image is built and the compose
# file is read by Docker; without one, the Dockerfile's own steps are run in a scratch folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -m pytest -q tests/unit/test_deploy.py

if docker info >/dev/null 2>&1; then
  docker build --quiet --file deploy/Dockerfile --tag luminode:check .
  docker run --rm --read-only --tmpfs /tmp --cap-drop ALL luminode:check config schema >/dev/null
  docker image rm --no-prune luminode:check >/dev/null
  if docker compose version >/dev/null 2>&1; then
    DB_PASSWORD=x ORTHANC_PASSWORD=x docker compose --file deploy/compose.yaml config --quiet
  fi
  echo "the image builds and runs, Docker reads the compose file"
else
  echo "no Docker engine here: the Dockerfile's steps were run in a scratch folder instead"
fi
