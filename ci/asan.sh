#!/usr/bin/env bash
# The test suite on a build with AddressSanitizer and UndefinedBehaviorSanitizer, aside from the in-place build.
set -euo pipefail
cd "$(dirname "$0")/.."
ci/bootstrap.sh
tree=build/asan/tree
mkdir -p "$tree"
cp -a setup.py pyproject.toml ci deploy docs README.md "$tree/"
# fresh sources, but the extensions of the last time stay: only what changed is built again
kept=build/asan/kept.tar
(cd "$tree" && find gwcore -name '*.so' 2>/dev/null | tar -cf "$OLDPWD/$kept" -T -) || true
rm -rf "$tree/gwcore" "$tree/tests"
cp -a gwcore tests "$tree/"
find "$tree/gwcore" -name '*.so' -delete
tar -xf "$kept" -C "$tree"
cd "$tree"
GWCORE_BUILD=asan ../../../.venv/bin/python setup.py -q build_ext --inplace > ../build.log 2>&1 || { cat ../build.log >&2; exit 1; }
# leaks are looked for by the tests' own counts: CPython itself never frees all that it has
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
export GWCORE_SANITIZED=1 PYTHONMALLOC=malloc PYTHONPATH="$PWD"
exec ../../../.venv/bin/python -m pytest -p no:cacheprovider --capture=sys "$@"
