#!/usr/bin/env bash
# In-place build; leaves `.venv/bin/python -m gwcore` and `.venv/bin/gwcore` working. Incremental.
set -euo pipefail
cd "$(dirname "$0")/.."
ci/bootstrap.sh
log=build/build.log
mkdir -p build
if ! GWCORE_STRICT=1 .venv/bin/python setup.py -q build_ext --inplace >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
pwd > "$site/gwcore-in-place.pth"
cat > .venv/bin/gwcore <<PY
#!$(pwd)/.venv/bin/python
from gwcore.cli import main
main()
PY
chmod +x .venv/bin/gwcore
