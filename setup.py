"""Build the extensions. GWCORE_BUILD = release (default) | asan | coverage | fuzz; GWCORE_STRICT=1 turns C warnings into errors."""

import glob
import os
import re
import sys
import tempfile

from Cython.Build import cythonize
from setuptools import Extension, setup

MODE = os.environ.get("GWCORE_BUILD", "release")
CFLAGS, LDFLAGS = {
    "release": (["-O2", "-g", "-fno-plt", "-fno-semantic-interposition"], []),
    "asan": (["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"], ["-fsanitize=address,undefined"]),
    "fuzz": (
        ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fsanitize-coverage=trace-pc"],
        ["-fsanitize=address,undefined"],
    ),
    "coverage": (["-O0", "-g", "--coverage"], ["--coverage"]),
}[MODE]
STRICT = ["-Werror"] if os.environ.get("GWCORE_STRICT") == "1" else []
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "auto_pickle": False,
}
OPENSSL = ["ssl", "crypto"]
LIBRARIES = {
    "gwcore._speedups.regex": ["pcre2-8"],
    "gwcore._speedups.crypto": OPENSSL,
    "gwcore._speedups.tls": OPENSSL,
    "gwcore._speedups.tickets": OPENSSL,
    "gwcore._speedups.tlsjobs": OPENSSL,
    "gwcore._speedups.sessions": OPENSSL,
    "gwcore._speedups.handshakes": OPENSSL,
    "gwcore._speedups.handshake": OPENSSL,
    "gwcore._speedups.tlscontext": OPENSSL,
    "gwcore._speedups.tlsserver": OPENSSL,
    "gwcore._speedups.tlsclient": OPENSSL,
    "gwcore._speedups.early": OPENSSL,
    "gwcore._speedups.greet": OPENSSL,
    "gwcore._speedups.plane": OPENSSL,
}


def strict_cythonize(extensions, **options):
    """cythonize, with a performance hint an error. Descriptor 2 is watched because the workers are processes."""
    with tempfile.TemporaryFile("w+") as said:
        keep = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            modules = cythonize(extensions, **options)
        finally:
            os.dup2(keep, 2)
            os.close(keep)
            said.seek(0)
            text = said.read()
            sys.stderr.write(text)
    hinted = set(re.findall(r"performance hint: (\S+?)\.p[xy]\w:", text))
    for stem in hinted:  # or the next build finds a fresh .c and says nothing
        for c_file in glob.glob(f"build/{MODE}/{stem}.c"):
            os.unlink(c_file)
    if hinted:
        sys.exit("error: a performance hint means the GIL is taken; add noexcept: " + ", ".join(sorted(hinted)))
    return modules


def extension(path):
    name = path[:-4].replace(os.sep, ".")
    return Extension(
        name,
        [path],
        include_dirs=["gwcore/_speedups"],
        depends=glob.glob("gwcore/_speedups/*.h"),
        libraries=LIBRARIES.get(name, []),
        extra_compile_args=[*CFLAGS, "-Wall", "-Wno-unused-function", "-Wno-sign-compare", *STRICT],
        extra_link_args=LDFLAGS,
    )


setup(
    ext_modules=strict_cythonize(
        [extension(p) for p in sorted(glob.glob("gwcore/**/*.pyx", recursive=True))],
        build_dir=f"build/{MODE}",
        nthreads=2,
        compiler_directives=DIRECTIVES,
        emit_linenums=MODE != "release",
    )
)
