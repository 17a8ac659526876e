"""One target under atheris, with coverage of the compiled code. Run by ci/fuzz.sh, which builds for it and loads coverage.c before all else.

python -m tests.fuzz.run TARGET [libFuzzer options] CORPUS...
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import atheris


def main() -> None:
    name = sys.argv.pop(1)
    if name == "config":  # the others are compiled: nothing of them is Python
        with atheris.instrument_imports(include=["gwcore.config"]):
            import gwcore.config.load  # noqa: F401
    from tests.fuzz.targets import TARGETS

    atheris.Setup(sys.argv, TARGETS[name])
    # preloaded for the compiled targets; libFuzzer lies in a module of atheris; its functions are not visible to other libraries by themselves
    if name != "config":
        found = ctypes.CDLL(str(next(Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so"))))
        ctypes.CDLL(None).coverage_begin(found.__sanitizer_cov_8bit_counters_init)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
