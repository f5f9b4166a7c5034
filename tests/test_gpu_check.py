"""The check for a card, on the CPU: its steps on small models, and what a step that fails does to the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scripts.benchmark import gpu_check
from scripts.benchmark.gpu_check import Check, app


def run(*options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["--device", "cpu", "--small", *options])
    found: dict[str, Any] = json.loads(next(line for line in result.output.splitlines() if line.startswith("{")))
    return result.exit_code, found


def test_a_step_that_fails_is_a_fault_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(check: Check, family: str, figures: dict[str, Any]) -> None:
        figures["begun"] = family
        raise RuntimeError("no kernel image")

    def works(check: Check, family: str, figures: dict[str, Any]) -> None:
        figures["precisions"] = check.precisions[0]

    monkeypatch.setattr(gpu_check, "STEPS", {"broken": breaks, "whole": works})
    status, found = run("--folder", str(tmp_path), "--json", str(tmp_path / "figures.json"))
    assert status == 1
    assert found["faults"] == [
        f"{name}, broken: RuntimeError: no kernel image" for name in ("indextts-2", "indextts-2.5")
    ]
    assert found["recipes"]["indextts-2.5"]["broken"]["begun"] == "indextts-2.5"
    assert found["recipes"]["indextts-2"]["whole"]["precisions"] == "fp32"
    assert json.loads((tmp_path / "figures.json").read_text()) == found


def test_steps_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    status, found = run("--folder", str(tmp_path), "--minutes", "-1")
    assert status == 1
    assert len(found["faults"]) == 8
    assert found["recipes"] == {}
    assert "indextts-2, golden: no time was left" in found["faults"][0]


@pytest.mark.slow
def test_all_steps_hold_on_a_cpu(tmp_path: Path) -> None:
    status, found = run("--folder", str(tmp_path), "--end-clips", "4")
    assert (status, found["faults"]) == (0, [])
    for family, samples in (("indextts-2", 8), ("indextts-2.5", 4)):
        steps = found["recipes"][family]
        assert steps["golden"]["fp32"]["samples"] == samples
        assert steps["golden"]["fp32"]["same_codes"] > 0.998
        assert "left_out" in steps["out of memory"]
        assert steps["models"]["fp32"]["codes_as_in_fp32"] == 1
        assert steps["end to end"]["arrow"]["clips"] == steps["end to end"]["npy"]["clips"] == 4
