#!/usr/bin/env bash
# ruff, cython-lint and mypy.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
ruff check gwcore tests ci bench setup.py
ruff format --check -q gwcore tests ci bench setup.py
cython-lint --ignore=E501,E701,E702,E741,E221,E222,E225,E227,E231,E302,E305,E306,E704,W504,W503,E128,E127,E129,E131,E261,E262,E265,E203,E201,E202,E301,E303 gwcore
mypy --no-error-summary
python -m mypy.stubtest gwcore.breaker gwcore.pool --allowlist ci/stubtest.txt --ignore-disjoint-bases
