"""Rules, dashboard and containers of ``examples/observability`` against a live server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.engine.conftest import PROMPTS, Serving, on_pairs

pytestmark = pytest.mark.engine
FOLDER = Path(__file__).parents[2] / "examples" / "observability"
OPERATING = FOLDER.parents[1] / "docs" / "operating.md"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "speckv.json").read_text())
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
SILENT = {"speckv:failures_total", "speckv:exact_rounds_total"}
"""Have no line before something failed, or a request took no drafts: ``test_faults.py`` and
``tests/unit/srt/test_counters.py`` see them."""


def queries() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [v["query"]["query"] for v in DASHBOARD["templating"]["list"]]
    return [rule["expr"] for rule in RULES] + targets + variables


@on_pairs("eagle3")
def test_every_metric_is_on_the_page_with_its_labels(server: Serving) -> None:
    server.generate(PROMPTS, max_new_tokens=64)
    page = requests.get(server.url + "/metrics", timeout=60).text
    there = set(re.findall(r"^(\w+:\w+)", page, re.MULTILINE))
    asked = {name for query in queries() for name in re.findall(r"\b\w+:\w+", query)}
    assert asked - RECORDED - SILENT <= there
    assert len(asked & there) > 12
    told = set(re.findall(r"`(speckv:\w+)", OPERATING.read_text()))
    assert len(told) > 15
    assert {name for name in told - SILENT if not any(t.startswith(name) for t in there)} == set()
    for label in ("num_steps", "position"):
        assert re.search(rf'^speckv:\w+{{.*\b{label}="', page, re.MULTILINE)


def test_brackets_of_every_query_are_closed() -> None:
    for query in queries():
        for left, right in ("()", "[]", "{}"):
            assert query.count(left) == query.count(right), query


def test_every_alert_is_explained() -> None:
    told = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == ALERTS


def test_files_that_are_mounted_are_there() -> None:
    services: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service["volumes"]:
            assert (FOLDER / volume.split(":")[0]).is_file()
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert scraped["rule_files"] == ["/etc/prometheus/rules.yml"]
