#!/usr/bin/env bash
# Fuzzing. The parsers (request, response, chunked, proxy, config) under atheris with coverage of the compiled code, AddressSanitizer and UBSan,
# each for its share of the time; then the differential fuzzer of whole conversations (h11 as oracle). Stops at the first finding, and leaves
# its input in build/fuzz/found. What is new and short goes back to tests/fuzz/corpus by hand.
# Usage: ci/fuzz.sh [--minutes N, 60 when not given] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=60
if [ "${1:-}" = --minutes ]; then
    minutes=$2
    shift 2
fi
targets=("$@")
ci/build.sh
root=$PWD
python=$root/.venv/bin/python
"$python" -c 'import atheris' 2>/dev/null || "$python" -m pip install -q --disable-pip-version-check \
    "$("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["fuzz"])')"

# a tree of its own: fresh sources, but the extensions of the last time stay
tree=build/fuzz/tree
mkdir -p "$tree" build/fuzz/found
cp -a setup.py pyproject.toml README.md "$tree/"
rm -rf "$tree/tests"
mkdir -p "$tree/gwcore"
find gwcore -type f ! -name '*.so' ! -path '*__pycache__*' | tar -cf - -T - | tar -xf - -C "$tree"
cp -a tests "$tree/"
gcc -shared -fPIC -O1 -Wall -o build/fuzz/coverage.so tests/fuzz/coverage.c
(cd "$tree" && GWCORE_BUILD=fuzz "$python" setup.py -q build_ext --inplace > ../build.log 2>&1) || { cat build/fuzz/build.log >&2; exit 1; }

seconds=$((minutes * 60 / 6))
all=(request response chunked proxy config)
for one in "${targets[@]:-${all[@]}}"; do
    mkdir -p "build/fuzz/corpus/$one"
    echo "fuzz: $one for $seconds s"
    (
        cd "$tree"
        if [ "$one" = config ]; then # Python, which atheris counts by itself, but not beside ASan
            cd ../../..
        else
            # leaks are not looked for: CPython never frees all that it has. ASan and libFuzzer would both take SIGABRT: libFuzzer has it
            export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_abort=0
            export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:abort_on_error=1 PYTHONMALLOC=malloc
            LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so):$root/build/fuzz/coverage.so"
            export LD_PRELOAD
        fi
        PYTHONPATH=$PWD exec "$python" -m tests.fuzz.run "$one" -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=4096 \
            -print_final_stats=1 -artifact_prefix="$root/build/fuzz/found/$one-" "$root/build/fuzz/corpus/$one" "$root/tests/fuzz/corpus/$one"
    )
done
[ ${#targets[@]} -gt 0 ] || GWCORE_FUZZ_EXAMPLES=$((seconds * 20)) "$python" -m pytest tests/fuzz -q --timeout 36000
