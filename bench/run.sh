#!/usr/bin/env bash
# The benchmarks that end within minutes: micro, the three scenarios of a minimal gateway, and the peers that are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python bench/micro/run.py
.venv/bin/python -m bench.load.scenarios
.venv/bin/python -m bench.load.peers "$@"
