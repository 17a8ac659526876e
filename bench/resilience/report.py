"""Tables, the picture, and the comparison with the figures of RESILIENCE sections 12 to 14."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.resilience.gateways import SETTINGS
from bench.resilience.scenarios import SCENARIOS, Scenario

LIKE = {"nginx": "retry", "haproxy": "checks", "envoy": "gwcore"}  # who has the same means: a second try, active checks, neither
CLOSE = (1.05, 10)  # a loss so near to another's (share and count) is the same: arrivals and choices of endpoints are chance

# At the most, for a fault of about a minute at 100 requests a second. refused: good ones.
LIMITS: dict[str, dict[str, float]] = {
    "all-503": {"detect_s": 0.5, "failed": 120, "recover_s": 10},
    "errors-30": {"refused_good": 0},
    "overload-60": {"lost": 3665},
    "brown-out": {"failed": 13, "refused_good": 0},
    "one-500": {"detect_s": 1.5, "failed": 60, "refused_good": 0},
    "one-hangs": {"detect_s": 5.5, "failed": 90, "refused_good": 0},
    "low-traffic": {"detect_s": 15, "failed": 33},
    "cancels": {"failed": 0, "refused_good": 0},
    "crash": {"detect_s": 0.5, "failed": 120, "recover_s": 10},
    "blip": {"failed": 38, "refused_good": 0},
    "regime": {"failed": 0, "refused_good": 0},
    "partition": {"detect_s": 5.5, "failed": 600, "recover_s": 10},
}
CHECKS_LIMITS = {"partition": {"recover_s": 5.0}}  # of the setting with active checks


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def table(s: Scenario, result: dict[str, Any]) -> str:
    """One scenario as Markdown."""
    lines = [
        f"### {s.name}: {s.text}",
        "",
        f"{result['rate']:g} requests/s, {result['before_s']:g} s well, {result['fault_s']:g} s of it, {result['after_s']:g} s after.",
        "",
        "| gateway | good answers | lost | failed | good refused | refused | detect s | recover s | p50, p99 of good ms | bad answers after ms |",
        "|---" * 10 + "|",
    ]
    for name in SETTINGS:
        if f := result["gateways"].get(name):
            lines.append(
                f"| {name} | {f['ok']} | {f['lost']:.0f} | {f['failed']} | {f['refused_good']:.0f} | {f['refused']} | {seconds(f['detect_s'])} | "
                f"{seconds(f['recover_s'])} | {f['p50_ms']:.0f}, {f['p99_ms']:.0f} | {f['failing_ms']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def whole(results: dict[str, Any]) -> str:
    """Every scenario that has figures, and who they are of."""
    who = "\n".join(f"- {s.name}: {s.text}" for s in SETTINGS.values())
    return who + "\n\n" + "\n".join(table(SCENARIOS[name], results[name]) for name in SCENARIOS if name in results)


def behind(name: str, result: dict[str, Any]) -> list[str]:
    """The peers that lost fewer requests than gwcore with the same means."""
    out = []
    for peer, like in LIKE.items():
        ours = like if like in result["gateways"] else "gwcore"
        if {peer, ours} <= result["gateways"].keys():
            theirs, own = result["gateways"][peer]["lost"], result["gateways"][ours]["lost"]
            if own > theirs * CLOSE[0] + CLOSE[1]:
                out.append(f"{name}: {peer} is ahead of {ours}: lost {theirs:.0f} to {own:.0f}")
    return out


def over(name: str, figures: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """The figures that are above their limit. A time that is missing is: it was never detected, or there was no recovery."""
    return [
        f"{name}: {key} {'none' if figures[key] is None else format(figures[key], 'g')}, at most {most:g}"
        for key, most in limits.items()
        if figures[key] is None or figures[key] > most
    ]


def check(results: dict[str, Any]) -> int:
    """Print what is over its figure and where a peer is ahead; 1 when anything is over."""
    bad: list[str] = []
    ahead: list[str] = []
    for name, result in results.items():
        if "gwcore" in result["gateways"]:
            bad += over(name, result["gateways"]["gwcore"], LIMITS.get(name, {}))
        if "checks" in result["gateways"]:
            bad += over(f"{name} (checks)", result["gateways"]["checks"], CHECKS_LIMITS.get(name, {}))
        ahead += behind(name, result)
    print("\n".join(bad) if bad else f"within its figures: {', '.join(results)}")
    print("\n".join(ahead) if ahead else "no peer is ahead")
    return int(bool(bad))


def draw(results: dict[str, Any], file: Path) -> None:
    """Bars of failed and wrongly refused requests by scenario and gateway, when matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    names = [name for name in SCENARIOS if name in results]
    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(14, 2.9 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        found = {g: results[name]["gateways"][g] for g in SETTINGS if g in results[name]["gateways"]}
        failed = [f["failed"] for f in found.values()]
        refused = [f["refused_good"] for f in found.values()]
        axis.barh(list(found), failed, color="#b23a48", label="failed")
        axis.barh(list(found), refused, left=failed, color="#e0a458", label="good ones refused")
        for i, f in enumerate(found.values()):
            axis.text(f["lost"], i, f" {seconds(f['detect_s'])} / {seconds(f['recover_s'])}", va="center", fontsize=7)
        axis.set_title(f"{name}: {SCENARIOS[name].text}", fontsize=8)
        axis.set_xlim(0, max([1, *(f["lost"] for f in found.values())]) * 1.25)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
    axes.flat[0].legend(fontsize=7, loc="lower right")
    figure.suptitle("requests failed and wrongly refused; behind the bars seconds to detect / to recover", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
