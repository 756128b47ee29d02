"""The one Prometheus page: what the documents say of it is what it holds."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

import control.metrics
import edge.metrics
import ingest.metrics
import workers.metrics
from tests.servers import REPOSITORY

SERVICES = (edge.metrics, ingest.metrics, workers.metrics, control.metrics)
PAGE = (REPOSITORY / "docs" / "operations.md").read_text()

_TOUCH = """
import edge.metrics, ingest.metrics, workers.metrics, control.metrics
from prometheus_client.metrics import MetricWrapperBase
for service in (edge.metrics, ingest.metrics, workers.metrics, control.metrics):
    for metric in vars(service).values():
        if isinstance(metric, MetricWrapperBase):
            metric.labels(*["x"] * len(metric._labelnames)) if metric._labelnames else metric
"""


def declared(service: ModuleType) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name on the page, kind and labels of each metric."""
    for metric in vars(service).values():
        if isinstance(metric, MetricWrapperBase):
            suffix = "_total" if metric._type == "counter" else ""
            yield f"{metric._name}{suffix}", str(metric._type), tuple(metric._labelnames)


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of the table of every metric: kind and labels by name."""
    table = PAGE.partition("### Every metric")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)(?:\{([\w,]+)\})?` \| (\w+) \| .+ \|$", table, re.MULTILINE)
    return {name: (kind, tuple(labels.split(",")) if labels else ()) for name, labels, kind in rows}


def test_the_table_of_metrics_is_every_metric_there_is_with_its_kind_and_labels() -> None:
    there = {name: (kind, labels) for service in SERVICES for name, kind, labels in declared(service)}
    assert documented() == there


def test_a_metric_named_anywhere_in_the_documents_is_in_that_table() -> None:
    named = {
        (path.name, name)
        for path in [*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"]
        for name in re.findall(r"`(heliograph_[a-z_]+)", path.read_text())
    }
    assert {(where, name) for where, name in named if name not in documented()} == set()


def test_the_page_of_several_processes_holds_every_metric(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _TOUCH], cwd=REPOSITORY, env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    page = generate_latest(registry).decode()
    shown = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    assert {name for name in documented() if name not in shown} == set()


@pytest.mark.parametrize("stage", ["spool", "shipped", "planned", "worker_events", "worker_dead_letters"])
def test_every_stage_of_the_pipeline_has_a_counter(stage: str) -> None:
    assert any(stage in name for name in documented())
