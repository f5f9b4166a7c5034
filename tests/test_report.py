"""The report: right numbers, one file, no network; in a real browser charts are drawn, hovered over and clicked."""

import base64
import html
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import ConfigError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.tools.demo.dataset import DemoDataset, make_dataset
from hfprep.tools.report import collect as collecting
from hfprep.tools.report.charts import histogram
from hfprep.tools.report.collect import collect
from hfprep.tools.report.writing import write_report

pytestmark = pytest.mark.usefixtures("normalised_once")

MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("report") / "data", num_samples=14, max_seconds=2.0)


@pytest.fixture(scope="module")
def output(demo: DemoDataset, golden_small: Path) -> Path:
    folder = demo.folder.parent / "features"
    build(
        BuildConfig(
            manifest=demo.manifest, output_dir=folder, models=golden_small / "checkpoints", val_ratio=0.3,
            device="cpu", batch_size=4,
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def page(output: Path) -> Path:
    target = output.parent / "report.html"
    write_report(output, target, with_audio=True)
    return target


def embedded(page: Path) -> dict[str, list[dict[str, Any]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_numbers_are_the_output_s(output: Path, demo: DemoDataset) -> None:
    found = collect(output)
    stats = json.loads((output / "stats.json").read_text())
    assert len(found.lengths) == len(demo.accepted_ids) == stats["total"]
    splits = {name: group.samples for name, group in found.groups["split"].items()}
    assert splits == {"train": stats["train"], "validation": stats["val"]}
    assert found.rejected == stats["rejected"]
    assert sum(group.seconds for group in found.groups["speaker"].values()) == pytest.approx(
        float(found.lengths.seconds.sum()), rel=1e-4
    )
    codes = [np.load(path) for path in (output / "codes").rglob("*.npy")]
    np.testing.assert_array_equal(found.code_counts["codes"], [np.bincount(np.concatenate(codes), minlength=128)])
    assert found.texts.unknown_tokens
    assert sum("rows" in row for row in found.timeline) >= 4
    assert sum(row.get("rows", 0) - row.get("rejected", 0) for row in found.timeline) == stats["total"]


def test_texts_are_shown_as_they_are_read(output: Path, page: Path) -> None:
    found = collect(output)
    tokenizer = TextTokenizer(Path(found.stats["tokenizer"]))
    manifests = [output / f"{name}_manifest.jsonl" for name in ("train", "val")]
    records = [json.loads(line) for path in manifests for line in path.read_bytes().splitlines()]
    by_id = {record["id"]: record for record in records}
    assert found.texts.shown.keys() == {record["language"] or "(none)" for record in records}
    html_text = html.unescape(page.read_text(encoding="utf-8"))
    for language, shown in found.texts.shown.items():
        assert 1 <= len(shown) <= 3
        for sample_id, text, normalized, pieces in shown:
            record = by_id[sample_id]
            assert (record["language"] or "(none)") == language
            whole = tokenizer.tokenize(record["text"], record["language"])
            assert record["text"].startswith(text)
            assert whole.stages.normalized.startswith(normalized)
            assert " ".join(whole.pieces).startswith(pieces)
            assert f'<td data-name="normalised">{normalized}</td><td data-name="pieces">{pieces}</td>' in html_text
    digits = Counter[str]()
    for record in records:
        normalized = tokenizer.tokenize(record["text"], record["language"]).stages.normalized
        digits[record["language"] or "(none)"] += any(character.isdecimal() for character in normalized)
    assert found.texts.digits_left == +digits


def test_a_part_is_drawn_and_said_so(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_POINTS", 10)
    monkeypatch.setattr(collecting, "EXTREMES", 1)
    found = collect(output)
    assert len(found.points.rows) == 10
    longest = max(found.lengths.seconds)
    assert any(row["seconds"] == pytest.approx(float(longest), abs=0.01) for row in found.points.rows)
    write_report(output, tmp_path / "part.html")
    assert f"10 of {len(found.lengths)} samples, chosen at random" in (tmp_path / "part.html").read_text()


def test_what_is_not_there_is_shown_as_nothing(output: Path, page: Path) -> None:
    """A rejected line without an id has an empty cell; batches without padding do not make an axis of nothing."""
    found = collect(output)
    assert any(row["id"] is None for row in found.rejected_rows)
    table = page.read_text().partition("<h2>Rejected</h2>")[2].partition("</table>")[0]
    assert f'<p class="note">{sum(found.rejected.values())} lines; all are listed below.' in table
    assert '<td data-name="id"></td>' in table
    assert "None" not in table
    chart = histogram("Padding", np.zeros(5), "%", counted="batches")
    drawn: Any = chart.renderers[0]
    assert drawn.data_source.data["right"][-1] == 1.0
    assert chart.yaxis[0].axis_label == "batches"


def test_one_file_without_any_address(page: Path) -> None:
    text = page.read_text()
    assert len(page.read_bytes()) < MOST_BYTES
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)[^\"']+", text)
    assert "default-src 'none'" in text
    assert "connect-src 'none'" in text


def test_a_hundred_thousand_samples_stay_under_five_megabytes(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lengths and points of 100,000 made from a few real ones: everything that grows with the number."""
    real = collect(output)
    generator = np.random.default_rng(0)
    pick = generator.integers(0, len(real.lengths), 100_000)
    old = real.lengths
    assert old.pace is not None
    by_name = {name: values[pick] for name, values in old.by_name.items()}
    lengths = collecting.Lengths(old.seconds[pick], by_name, old.split[pick], old.position[pick], old.pace[pick])
    chosen = [int(number) for number in pick[: collecting.MOST_POINTS]]
    points = collecting.Points(
        [
            real.points.rows[at] | {"id": f"speaker_{n:06d}/chapter/{n:09d}", "text": "x" * 160}
            for n, at in enumerate(chosen)
        ],
        [real.points.texts[at] for at in chosen],
        {
            name: values[chosen] + generator.normal(size=(len(chosen), values.shape[1]))
            for name, values in real.points.vectors.items()
        },
    )
    rejected = [row | {"message": "y" * 400} for row in real.rejected_rows * 30][: collecting.MOST_REJECTED]
    timeline = [row | {"time": row["time"] + n} for n, row in enumerate(real.timeline * 5000)]
    big = collecting.Collected(
        real.root, real.format, real.schema, lengths, real.groups, points,
        {"codes": generator.integers(0, 9, (1, 8192))}, 20_000, real.stats, real.rejected, rejected, timeline,
    )  # fmt: skip
    monkeypatch.setattr("hfprep.tools.report.writing.collect", lambda root, with_audio: big)
    assert write_report(output, tmp_path / "big.html") < MOST_BYTES


def test_text_cannot_break_out_of_the_page(output: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "out"))
    path = copy / "train_manifest.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    evil = "</script><script>document.title='broken'</script>"
    rows[0]["text"] = rows[0]["speaker"] = evil
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(copy, tmp_path / "evil.html")
    assert "<script>document.title" not in (tmp_path / "evil.html").read_text()
    assert any(row["text"] == evil for row in embedded(tmp_path / "evil.html")["samples"])


def test_without_the_library_it_says_what_to_install(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == "bokeh" or name.startswith("hfprep.tools.report.")
    ]:
        if name not in {"hfprep.tools.report.writing", "hfprep.tools.report.collect"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ConfigError, match=r"hfprep\[report\]"):
        write_report(output, tmp_path / "none.html")


def test_the_command(output: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(output), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r.html").stat().st_size > 1_000_000
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert isinstance(missing.exception, ConfigError)


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing came of it in {seconds} s")


@pytest.fixture(scope="module")
def opened(browser: Any, page: Path) -> Any:
    """The page, drawn; opening it takes seconds, so that all tests look at the same one."""
    browser.get(page.as_uri())
    wait_until(lambda: browser.execute_script("return document.documentElement.dataset.drawn"))
    return browser


CHARTS = "return Bokeh.documents[0].roots().filter((model) => model.type === 'Figure')"


def test_every_chart_is_drawn_without_errors_or_requests(opened: Any, page: Path) -> None:
    titles = opened.execute_script(f"{CHARTS}.map((chart) => chart.title.text)")
    assert len(titles) == 18
    assert {"Audio by language", "Duration", "Most used codes", "Throughput while building"} <= {
        title.split(" (")[0] for title in titles
    }
    severe = [entry for entry in opened.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]
    assert not severe
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = {item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}


def ink(driver: Any) -> list[float]:
    """Share of each chart's canvas that is not its most frequent colour."""
    script = """
      return [...document.querySelectorAll('.charts > div > div')].map((host) => {
        const canvas = host.shadowRoot?.querySelector('.bk-CanvasPanel') ?? host;
        const find = (node) => node.tagName === 'CANVAS' ? [node]
          : [...(node.shadowRoot ? find(node.shadowRoot) : []), ...[...(node.children ?? [])].flatMap(find)];
        let best = 0;
        for (const drawn of find(host)) {
          const {data, width, height} = {...{width: drawn.width, height: drawn.height},
            data: drawn.getContext('2d').getImageData(0, 0, drawn.width, drawn.height).data};
          const counts = new Map();
          for (let at = 0; at < data.length; at += 16) {
            const key = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
            counts.set(key, (counts.get(key) ?? 0) + 1);
          }
          best = Math.max(best, 1 - Math.max(...counts.values()) / (data.length / 16));
        }
        return best;
      });"""
    return [float(value) for value in driver.execute_script(script)]


def test_charts_have_ink(opened: Any) -> None:
    shares = ink(opened)
    assert len(shares) == 18
    assert min(shares) > 0.005, shares


def place_of_point(driver: Any, title: str) -> dict[str, Any]:
    """Scroll to a chart and say where its first point is within the window, and whose it is."""
    script = """
      const view = Bokeh.index.roots.find((view) => view.model.title?.text.startsWith(arguments[0]));
      view.el.scrollIntoView({block: 'center'});
      const renderer = view.model.renderers.find((item) => item.name === 'points');
      const source = renderer.data_source;
      const frame = view.frame ?? view.frame_view;
      const [xs, ys] = [frame.x_scale, frame.y_scale];
      const box = view.el.getBoundingClientRect();
      const data = source.data;
      return {x: box.left + xs.compute(data.x[0]), y: box.top + ys.compute(data.y[0]), id: data.id[0]};"""
    return dict(driver.execute_script(script, title))


def test_hover_and_click_show_the_sample(opened: Any) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    place = place_of_point(opened, "Codes against text ids")
    time.sleep(0.5)
    actions = ActionBuilder(opened)
    actions.pointer_action.move_to_location(int(place["x"]), int(place["y"]))
    actions.perform()
    find = """
      const find = (node) => [...(node.classList?.contains('bk-Tooltip') ? [node] : []),
        ...(node.shadowRoot ? find(node.shadowRoot) : []), ...[...(node.children ?? [])].flatMap(find)];
      return find(document.body).map((tip) => (tip.shadowRoot ?? tip).textContent).join(' ');"""
    wait_until(lambda: place["id"] in opened.execute_script(find))
    actions = ActionBuilder(opened)
    actions.pointer_action.move_to_location(int(place["x"]), int(place["y"]))
    actions.pointer_action.click()
    actions.perform()
    panel = opened.find_element("id", "row")
    wait_until(panel.is_displayed)
    assert place["id"] in panel.text
    player = panel.find_element("tag name", "audio")
    wait_until(lambda: opened.execute_script("return arguments[0].duration > 0.2", player))


def test_a_rejected_line_shows_its_message(opened: Any) -> None:
    row = next(line for line in opened.find_elements("css selector", "tr[data-rejected]") if "not_audio" in line.text)
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", row)
    panel = opened.find_element("id", "row")
    wait_until(panel.is_displayed)
    assert "Format not recognised" in panel.text
    opened.execute_script("window.hfprep.rejected('audio_empty')")
    assert "empty_file" in panel.text
    assert "no_samples" in panel.text
    panel.find_element("tag name", "button").click()
    assert not panel.is_displayed()


def test_a_sample_shows_its_text_in_every_form(opened: Any, page: Path) -> None:
    number, row = next((at, row) for at, row in enumerate(embedded(page)["samples"]) if "$" in row["text"])
    opened.execute_script("window.hfprep.show('samples', arguments[0])", number)
    panel = opened.find_element("id", "row")
    wait_until(panel.is_displayed)
    assert row["normalised"] not in {"", row["text"]}
    for name in ("text", "normalised", "pieces"):
        assert row[name] in panel.text
    panel.find_element("tag name", "button").click()


def test_it_fits_a_phone(opened: Any, page: Path) -> None:
    metrics = {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened.get(page.as_uri())
        wait_until(lambda: opened.execute_script("return document.documentElement.dataset.drawn"))
        assert opened.execute_script("return document.documentElement.scrollWidth") == 375
        widths = opened.execute_script(
            "return [...document.querySelectorAll('.charts > div')].map((chart) => chart.getBoundingClientRect().right)"
        )
        assert len(widths) == 18
        assert max(widths) <= 375
        boxes = "[...document.querySelectorAll('section, table')]"
        scrolled = f"return {boxes}.filter((box) => box.scrollWidth > box.clientWidth + 1).length"
        assert opened.execute_script(scrolled) == 0
        names = "return getComputedStyle(document.querySelector('td'), '::before').content"
        assert opened.execute_script(names) == '"what"'
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_dark_and_print(opened: Any) -> None:
    def ground() -> tuple[str, str]:
        page_colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        return page_colour, opened.execute_script(f"{CHARTS}[0].background_fill_color")

    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    wait_until(lambda: ground() == ("rgb(22, 24, 28)", "#16181c"))
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    )
    wait_until(lambda: ground() == ("rgb(255, 255, 255)", "#ffffff"))
    opened.find_element("id", "theme").click()
    wait_until(lambda: ground() == ("rgb(22, 24, 28)", "#16181c"))
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert ground() == ("rgb(255, 255, 255)", "#ffffff")
    opened.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert ground() == ("rgb(22, 24, 28)", "#16181c")
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
