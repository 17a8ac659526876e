#!/usr/bin/env bash
# Installs what the project needs: system packages by name when root, a virtual environment at .venv, Python dependencies in it.
# Quick when all is there already. Says what is missing when it may not install it.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
need() { # need PACKAGE TEST...: remember the package when the test fails
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "bootstrap: $python is missing; install Python 3.11 to 3.14" >&2; exit 1; }
"$python" - <<'PY' || { echo "bootstrap: $python is not 3.11 to 3.14; set PYTHON=/path/to/another" >&2; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PY
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
need gcc command -v gcc
need libc6-dev test -f /usr/include/stdio.h
need libpcre2-dev test -f /usr/include/pcre2.h
need libssl-dev test -f /usr/include/openssl/ssl.h
need strace command -v strace
need redis-server command -v redis-server
need python3-dev test -f "$include/Python.h"
need python3-venv "$python" -c 'import ensurepip'
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "bootstrap: installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
    else
        echo "bootstrap: these packages are missing: ${missing[*]}" >&2
        echo "bootstrap: run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=.venv/.bootstrap
want=$(cat pyproject.toml ci/bootstrap.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    .venv/bin/python -m pip install -q --disable-pip-version-check -U pip
    .venv/bin/python - > .venv/requirements.txt <<'PY'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PY
    .venv/bin/python -m pip install -q --disable-pip-version-check -r .venv/requirements.txt
    echo "$want" > "$stamp"
fi
