"""deploy/alerts.yaml and deploy/grafana.json, held against what `/metrics` of a running bus prints."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from runner import Event, Failed, Rejected, load
from tests.support.eventually import eventually
from tests.support.http import ask

from .buses import Bus

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]

API = "api: {listen: '127.0.0.1:0'}\n"

OF_PROMETHEUS = {"job", "instance"}  # the labels that a scrape adds
UP = {"up": {"job": set[str](), "instance": set[str]()}}

Printed = dict[str, dict[str, set[str]]]
"""The labels of each metric, by its name, and their values."""


async def print_metrics(directory: Path, dsn: str) -> Printed:
    """Return what a bus prints on which everything has happened that is counted."""
    runner = load(Bus(directory, dsn).write(API))

    def handle(event: Event) -> object:
        return {"failed": Failed("not yet"), "rejected": Rejected("never")}.get(event.type)

    runner.subscribe("crm", handle, types=["*"])
    runner._tally.add_missed("nightly", 1)
    async with runner:
        await runner.publish_many([Event.new(type, source="/s") for type in ("good", "failed", "rejected")])

        async def counted() -> Printed:
            answer = await asyncio.to_thread(ask, runner.addresses[0], "/metrics")
            assert answer.status == 200
            printed: Printed = defaultdict(lambda: defaultdict(set))
            for family in text_string_to_metric_families(answer.body.decode()):
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        printed[sample.name][label].add(value)
                    printed[sample.name]  # one without labels
            assert {"accepted", "failed", "rejected"} <= printed["runner_attempts_total"]["result"]
            assert printed["runner_deliveries_total"]["subscription"]
            assert printed["runner_strategy_hears"]
            assert printed["runner_breaker_open"]
            return printed

        return await eventually(counted)


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield where each expression stands, itself, and the text for people beside it, which names labels."""
    for rule in RULES:
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], _filled(target["expr"]), target["legendFormat"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            yield variable["name"], f"count by ({label}) ({_filled(metric)})", ""


def _filled(expression: str) -> str:
    """Put a value in place of each variable of Grafana."""
    for variable, value in (("$__rate_interval", "5m"), ("$job", "runner"), ("$subscription", ".*")):
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def selectors(expression: promql.Expr) -> list[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)

    promql.walk(expression, visit)
    return list({str(each): each for each in found}.values())


def groupings(expression: promql.Expr) -> list[tuple[promql.Expr, list[str]]]:
    """Return the labels that aggregations and matches name, with what these are over."""
    found: list[tuple[promql.Expr, list[str]]] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.append((node.expr, node.modifier.labels))
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            found.extend((side, node.modifier.matching.labels) for side in (node.lhs, node.rhs))

    promql.walk(expression, visit)
    return found


def faults(text: str, beside: str, printed: Printed) -> Iterator[str]:
    """Yield what an expression asks for that is not printed."""
    expression = promql.parse(text)
    known = printed | UP

    def labels(node: promql.Expr) -> set[str]:
        of_all = [set(known.get(str(each.name), ())) for each in selectors(node)]
        return set.union(*of_all) | OF_PROMETHEUS

    for selector in selectors(expression):
        name = str(selector.name)
        if name not in known:
            yield f"no metric {name}"
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name in OF_PROMETHEUS:
                continue
            if matcher.name not in known[name]:
                yield f"{name} has no label {matcher.name}"
            elif matcher.value != ".*" and (missing := set(matcher.value.split("|")) - known[name][matcher.name]):
                yield f"{name} has no {matcher.name} {missing}"
    for over, named in groupings(expression):
        yield from (f"no label {label} in {over.prettify()}" for label in named if label not in labels(over))
    shown = {*re.findall(r"\{\{(\w+)\}\}", beside), *re.findall(r"\$labels\.(\w+)", beside)}
    kept = _kept(expression, labels(expression))
    yield from (f"{label} is shown, and not among {sorted(kept)}" for label in shown - kept)


def _kept(expression: promql.Expr, labels: set[str]) -> set[str]:
    """Return the labels of the result: those of the outermost aggregation, if there is one."""
    match expression:
        case promql.AggregateExpr(modifier=modifier):
            return set(modifier.labels) if modifier is not None else set()
        case promql.BinaryExpr(lhs=left):
            return _kept(left, labels)
        case promql.ParenExpr(expr=inner):
            return _kept(inner, labels)
        case promql.Call(func=function, args=args) if function.name == "histogram_quantile":
            return _kept(args[1], labels) - {"le"}
    return labels


async def test_every_expression_asks_for_what_a_bus_prints(tables_file: str, tmp_path: Path) -> None:
    """Each metric, each label of it, and each value that one of them is compared with; and each metric is shown."""
    printed = await print_metrics(tmp_path, tables_file)
    wrong = [f"{where}: {fault}" for where, text, beside in expressions() for fault in faults(text, beside, printed)]
    assert wrong == []

    # The test itself: it finds what is not there.
    for text, beside in (
        ("runner_backlogs > 0", ""),
        ('runner_backlog{state="waiting"} > 0', ""),
        ('runner_backlog{name="crm"} > 0', ""),
        ("max by (strategy) (runner_backlog) > 0", ""),
        ("max by (job) (runner_backlog) > 0", "{{ $labels.subscription }}"),
        ("runner_loop_stalled_seconds > 20 unless on (loop) runner_store_up == 0", ""),
    ):
        assert list(faults(text, beside, printed)), text

    asked = {str(each.name) for _, text, _ in expressions() for each in selectors(promql.parse(text))}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in printed if name.startswith("runner_")}
    shown = {re.sub(r"_bucket$", "", name) for name in asked}
    assert families - shown == set(), "a metric that neither the dashboard nor an alert looks at"


def test_alerts_are_complete_and_lead_somewhere() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "see"}
        document, _, anchor = rule["annotations"]["see"].partition("#")
        headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / document).read_text())
        assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, rule["alert"]


def test_every_alert_has_a_case() -> None:
    cases = yaml.safe_load((DEPLOY / "alerts.test.yaml").read_text())["tests"]
    named = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]  # type: ignore[index]
        for case in cases
        for test in case["promql_expr_test"]
        for sample in test["exp_samples"]
    }
    assert named == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool")
@pytest.mark.parametrize("command", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]])
def test_promtool_agrees(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_fits_a_screen() -> None:
    """No two panels overlap, each has a title, a description and a unit, and its ids are unique."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
