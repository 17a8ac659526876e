#!/usr/bin/env bash
# A long run of the differential fuzzer (h11 as oracle). Usage: ci/fuzz.sh [examples]
set -euo pipefail
cd "$(dirname "$0")/.."
ci/build.sh
GWCORE_FUZZ_EXAMPLES=${1:-20000} exec .venv/bin/python -m pytest tests/fuzz -q --timeout 36000
