#!/usr/bin/env bash
# Mixed traffic with reloads, worker kills, clients that leave at random bytes and an upstream that misbehaves; ends with counts at zero and
# memory flat, or fails. Usage: ci/soak.sh [minutes, 30 when not given]
set -euo pipefail
cd "$(dirname "$0")/.."
ci/build.sh
exec .venv/bin/python -m bench.load.soak --minutes "${1:-30}" --faults
