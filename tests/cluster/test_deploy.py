"""The manifest for Kubernetes starts what there is to start: its commands are read as they stand."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from places import ROOT

from zemosaic_phase3.app.cli import build_parser


def containers(part: dict[str, Any]) -> dict[str, list[str]]:
    return {one["name"]: [*one["command"], *one["args"]] for one in part["spec"]["containers"]}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
    return document


def test_the_job_orders_tiles_of_the_cluster(cluster: dict[str, Any]) -> None:
    program, *arguments = containers(cluster["spec"]["job"])["job"]
    args = build_parser().parse_args(arguments)
    assert (program, arguments[0], args.scheduler) == ("zemosaic-phase3", "tiles", "$(DASK_SCHEDULER_ADDRESS)")
    worker = cluster["spec"]["cluster"]["spec"]["worker"]["spec"]["containers"][0]
    assert int(worker["resources"]["limits"]["cpu"]) == args.threads
    assert cluster["spec"]["job"]["spec"]["volumes"] == cluster["spec"]["cluster"]["spec"]["worker"]["spec"]["volumes"]
    assert str(args.output).startswith(worker["volumeMounts"][0]["mountPath"])


@pytest.mark.parametrize("what", ["worker", "scheduler"])
def test_dask_has_the_options(cluster: dict[str, Any], what: str) -> None:
    program, name, *arguments = containers(cluster["spec"]["cluster"]["spec"][what])[what]
    assert (program, name) == ("dask", what)
    command = importlib.import_module(f"distributed.cli.dask_{what}").main
    command.make_context(f"dask {what}", arguments)  # raises for an option that it does not know
