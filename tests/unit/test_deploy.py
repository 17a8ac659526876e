"""What is shipped in deploy/: every metric and label in it is one that the gateway has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from gwcore.admin.metrics import SegmentCollector
from tests.unit.test_admin import gateway  # noqa: F401

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus-rules.yaml"
TRIED = Path(__file__).parents[1] / "prometheus_rules.yaml"
LABELS = {"instance", "window"}  # of the scraper; of windows without requests


def expressions() -> dict[str, str]:
    """By place: every expression that is shipped."""
    out = {}
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            out[rule.get("record") or rule["alert"]] = rule["expr"]
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            out[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return out


def test_metrics_and_labels_are_those_of_the_gateway(gateway):  # noqa: F811
    g = gateway()
    g.segment.switch("tier", "P2", time.monotonic_ns() // 1_000_000 + 60_000)
    known: dict[str, set[str]] = {}
    for family in SegmentCollector(g).collect():
        labels = {label for sample in family.samples for label in sample.labels} | set(getattr(family, "_labelnames", ()))
        known[family.name + ("_total" if family.type == "counter" else "")] = labels
    recorded = {name for name in expressions() if name.startswith("gwcore:")}
    for place, text in expressions().items():
        for name in re.findall(r"gwcore_\w+", text):
            assert name in known, f"{place}: {name}"
        assert set(re.findall(r"gwcore:[\w:]+", text)) <= recorded, place
        for name, selector in re.findall(r"(gwcore_\w+)\{([^}]*)\}", text):
            for label in re.findall(r"(\w+)\s*[=!]", selector):
                assert label in known[name] | LABELS, f"{place}: {name} has no label {label}"


def test_rules_are_whole():
    names = []
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            names.append(rule.get("record") or rule["alert"])
            assert "record" in rule or {"labels", "annotations"} <= set(rule)
    assert len(names) == len(set(names))
    ids = [p["id"] for p in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_likes_the_rules():
    for what in (["check", "rules", str(RULES)], ["test", "rules", str(TRIED)]):
        done = subprocess.run(["promtool", *what], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
