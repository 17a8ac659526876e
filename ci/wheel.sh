#!/usr/bin/env bash
# A manylinux wheel with OpenSSL and PCRE2 inside; installed into an empty environment elsewhere, one request is proxied through it.
set -euo pipefail
cd "$(dirname "$0")/.."
ci/bootstrap.sh
export PATH="$PWD/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# a clean copy, because setuptools would pack what lies in build/; without git, which a bare machine does not have
tar -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist --exclude='*.so' --exclude=__pycache__ . | tar -x -C "$work"
mkdir -p dist
(cd "$work" && python -m build --wheel --no-isolation --outdir "$work/raw" >"$work/build.log" 2>&1) || { cat "$work/build.log" >&2; exit 1; }
auditwheel show "$work"/raw/*.whl
auditwheel repair --strip -w dist "$work"/raw/*.whl
wheel=$(ls -t dist/*.whl | head -n 1)
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "$wheel"
mkdir "$work/elsewhere"
cp ci/wheel_check.py "$work/elsewhere/"
(cd "$work/elsewhere" && env -u PYTHONPATH ../venv/bin/python wheel_check.py)
