"""What the report computes, by hand, and that it is one of any schema: no browser, no models."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfprep.schema import Column, Group, Schema
from hfprep.store.state import State
from hfprep.tools.report.charts import (
    BEYOND,
    MARKERS,
    OTHERS,
    PALETTE,
    axis_end,
    beyond_axes,
    group_bars,
    histogram,
    labels_shown,
    looks,
    main_directions,
    usual_range,
)
from hfprep.tools.report.collect import Collected, Lengths, Points, collect
from hfprep.tools.report.outliers import clipped, outliers, silence
from hfprep.tools.report.page import render
from hfprep.tools.shares import Share
from tests.made_up_outputs import MADE_UP, write_made_up

GROUNDS = ("#ffffff", "#16181c")  # of page.css
SCHEMA = Schema(
    "x",
    (Column("ids", "int32", ("text_len",), "a", "tokens"), Column("codes", "int32", ("code_len",), "a", "codes")),
    (Group("a", "text"),),
)


def luminance(colour: str) -> float:
    """Relative luminance of a colour, by WCAG 2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_stands_out_in_both_themes() -> None:
    style = (Path(__file__).parent.parent / "hfprep/tools/report/page.css").read_text()
    assert all(f"--ground: {ground}" in style for ground in GROUNDS)
    for colour, ground in itertools.product((*PALETTE, BEYOND, OTHERS), GROUNDS):
        assert contrast(colour, ground) >= 3, (colour, ground)


# What is left of a colour without one kind of cone, in linear RGB: Machado, Oliveira and Fernandes (2009).
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen(colour: str, sight: str) -> np.ndarray:
    """A colour in CIELAB, (3,), as somebody with that sight sees it."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_by_colour_blind_readers(sight: str) -> None:
    apart = {pair: np.linalg.norm(seen(pair[0], sight) - seen(pair[1], sight)) for pair in
             [*itertools.combinations(PALETTE, 2), (PALETTE[0], BEYOND)]}  # fmt: skip
    assert min(apart.values()) > 19, min(apart, key=lambda pair: apart[pair])
    assert min(apart[pair] for pair in itertools.combinations(PALETTE[:4], 2)) > 30


def test_labels_are_told_apart_by_colour_and_by_marker() -> None:
    labels = ["rare", *(name for name in "abcdefghij" for _ in range(3)), "(none)", "a"]
    shown = labels_shown(labels)
    legend = looks(shown)
    assert list(legend) == [*"abcdefg", "others", "(none)"]
    assert shown[0] == "others"
    assert len(set(legend.values())) == len(legend)
    assert len({marker for _, marker in legend.values()}) == len(MARKERS) + 2
    assert looks(labels_shown(["x", "x", "y"])) == {
        "x": (PALETTE[0], MARKERS[0]),
        "y": (PALETTE[1], MARKERS[1]),
    }


def test_main_directions_by_hand() -> None:
    """Points on a line at 30 degrees: one direction holds everything, and distances along it are kept."""
    along = np.array([-2.0, -1.0, 0.0, 3.0])
    places, shares = main_directions(np.outer(along, [np.cos(np.pi / 6), np.sin(np.pi / 6)]))
    np.testing.assert_allclose(np.abs(places[:, 0]), np.abs(along), atol=1e-12)
    np.testing.assert_allclose(places[:, 1], 0, atol=1e-12)
    assert shares == pytest.approx((1.0, 0.0), abs=1e-12)


def test_one_outlier_does_not_flatten_an_axis() -> None:
    values = np.concatenate([np.linspace(1, 10, 24), [3600.0]])
    assert axis_end(values) == 10
    assert axis_end(values[:-1]) == 10
    assert axis_end(np.array([5.0])) == 5
    assert axis_end(np.zeros(3)) == 0
    assert axis_end(np.append(values[:-1], 14.0)) == 14, "not far beyond the rest"
    chart: Any = histogram("Duration", values, "seconds", limit=9)
    rest, beyond, _limit = chart.renderers
    assert max(rest.data_source.data["right"]) == 10
    assert sum(rest.data_source.data["top"]) == 24
    assert list(beyond.data_source.data["top"]) == [1]
    labels = [item.label.value for item in chart.legend[0].items]
    assert labels == ["1 beyond, up to 3,600", "limit 9"]
    far: Any = histogram("Duration", values[:-1], "seconds", limit=100)
    assert not far.legend, "a limit far beyond is not drawn"
    assert far.title.text == "Duration (mean 5.5, limit 100)"


def test_one_outlier_does_not_flatten_a_map() -> None:
    generator = np.random.default_rng(0)
    places = generator.normal(5.0, 1.0, (200, 2))
    places[7] = (4000.0, 5.0)
    ends = [usual_range(places[:, 0]), usual_range(places[:, 1])]
    for low, high in ends:
        assert 0 < low < 4 < 6 < high < 10
    assert beyond_axes(places[:, 0], places[:, 1], ends) == " (1 beyond the axes)"
    assert beyond_axes(places[8:, 0], places[8:, 1], ends) == ""
    few = np.array([-16.0, -11.0, -1.0, 6.0, 7.0, 15.0])
    assert usual_range(few) == pytest.approx((-16 - 1.55, 15 + 1.55)), "all of a few points are shown"
    assert usual_range(np.zeros(3)) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("manifest", "name"),
    [("/data/ljspeech/metadata.csv", "ljspeech"), ("emilia_de.jsonl", "emilia_de"), ("demo/data/train.tsv", "demo"),
     ("manifest.jsonl", "features"), (None, "features")],
)  # fmt: skip
def test_a_data_set_is_called_by_its_name(tmp_path: Path, manifest: str | None, name: str) -> None:
    root = write_made_up(tmp_path / "features")
    state = State(root / ".hfprep" / "state.sqlite", SCHEMA, tmp_path / "scan.sqlite")
    state.put("paths", {"manifest": manifest})
    state.close()
    assert collect(root).name == name


@pytest.mark.parametrize(("seconds", "unit"), [(18, "seconds"), (600, "minutes"), (36_000, "hours")])
def test_audio_is_counted_in_a_handy_unit(seconds: float, unit: str) -> None:
    chart: Any = group_bars("split", {"train": Share(3, seconds)})
    assert chart.xaxis[0].axis_label == unit
    assert 1.5 <= chart.renderers[0].data_source.data["value"][0] < 90


def test_silence_and_clipping_by_hand() -> None:
    tone = 0.5 * np.sin(np.arange(16000) * 0.2).astype(np.float32)
    quiet = np.concatenate([tone, np.zeros(16000, np.float32), 0.001 * tone])
    assert silence(tone) == 0
    assert silence(quiet) == pytest.approx(2 / 3, abs=0.02)
    assert silence(np.zeros(16000, np.float32)) == 1
    assert silence(np.zeros(3, np.float32)) == 0
    loud = np.clip(4 * tone, -1, 1)
    assert clipped(tone) == 0
    assert clipped(loud) > 0.5


def collected(seconds: np.ndarray, tokens: np.ndarray, codes: np.ndarray, **more: Any) -> Collected:
    rows = [
        {"id": str(at), "seconds": float(s), "text_len": int(t), "code_len": int(c), "text": ""}
        for at, (s, t, c) in enumerate(zip(seconds, tokens, codes, strict=True))
    ]
    number = np.zeros(len(rows), np.int32)
    lengths = Lengths(seconds, {"text_len": tokens, "code_len": codes}, number, number, codes / tokens)
    return Collected(
        Path(), "npy", SCHEMA, lengths, {}, Points(rows, [], {}), {}, 0, {}, {}, [], [], **more
    )  # fmt: skip


def test_what_to_listen_to_first() -> None:
    generator = np.random.default_rng(0)
    seconds = generator.uniform(3, 9, 60).round(2)
    codes = (50 * seconds).astype(np.int32)
    tokens = (codes / generator.uniform(9, 12, 60)).astype(np.int32)
    seconds[5], codes[5], tokens[5] = 120, 6000, 600
    tokens[6] = 400
    signals = {7: {"silence": 0.7, "clipped": 0.0}, 8: {"silence": 0.1, "clipped": 0.02}}
    found = {(odd.point, odd.what) for odd in outliers(collected(seconds, tokens, codes, signals=signals))}
    assert found == {
        (5, "longer than the rest"),
        (6, "few codes for its text"),
        (7, "much silence"),
        (8, "clipped"),
    }
    assert outliers(collected(seconds[:10], tokens[:10], codes[:10])) == [], "ten samples are no rule"


def test_a_made_up_schema_has_a_report(tmp_path: Path) -> None:
    root = write_made_up(tmp_path / "out")
    found = collect(root)
    assert found.schema == MADE_UP
    assert found.lengths.by_name.keys() == {"phone_len", "code_len"}
    assert found.code_counts["layers"].shape == (4, 16)
    assert found.points.vectors["pose"].shape == (8, 5)
    page = render(found)
    assert "pose of each speaker" in page
    assert "limit 12" in page
    assert "By codebook, of 16 codes each" in page
    for name in ("condition", "emo_vec", "8,192"):
        assert name not in page.partition("<body>")[2]
