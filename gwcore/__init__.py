"""gwcore: an HTTP gateway with a compiled data plane.

`Gateway` runs one from Python, `load_config` reads a configuration. Both are imported at first use, so that importing a part of the
package (say `gwcore.breaker`) costs nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwcore.config.load import load_config
    from gwcore.gateway import Gateway

__version__ = "0.1.0"
__all__ = ["Gateway", "load_config", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Gateway":
        from gwcore.gateway import Gateway

        return Gateway
    if name == "load_config":
        from gwcore.config.load import load_config

        return load_config
    raise AttributeError(f"module 'gwcore' has no attribute {name!r}")
