#!/usr/bin/env bash
# Everything that a change must pass: build, lint, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
ci/build.sh
ci/lint.sh
exec .venv/bin/python -m pytest "$@"
