"""Text ids made anew: the same as a build with that tokenizer gives, and no audio is computed again."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.manifest_paths import audio_finder
from hfprep.io import atomic
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.retokenizing import retokenize
from tests.sample_sets import make_output, public_files

pytestmark = pytest.mark.usefixtures("two_layers")

TEXTS = (
    "Text with words and more words.",
    "The first line, with 3 numbers.",
    "ሰላም ለዓለም",
    "日本語のテキスト",
    "你好，世界",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tokenizer: a character model made here from a few texts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("\n".join(line.upper() for line in TEXTS) + "\n\u201c\u201d:,. 0123456789\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(folder / "char"), model_type="char", vocab_size=60, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return folder / "char.model"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> Path:
    """A real build over the small golden set."""
    output = tmp_path_factory.mktemp("built") / "out"
    hfprep.build(config_of(golden_small, output))
    return output


def config_of(golden_small: Path, output: Path, tokenizer: Path | None = None) -> BuildConfig:
    return BuildConfig(
        manifest=golden_small / "manifest.jsonl", output_dir=output, models=golden_small / "checkpoints",
        val_ratio=0.3, tokenizer=tokenizer,
    )  # fmt: skip


def without_stats(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in public_files(output).items() if name != "stats.json"}


@pytest.mark.parametrize("beside", [False, True])
def test_it_equals_a_build_with_that_tokenizer(
    tmp_path: Path, built: Path, golden_small: Path, tokenizer: Path, beside: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(built, source)
    before = public_files(source)
    stamps = {path: path.stat().st_mtime_ns for path in source.rglob("codes/*")}
    summary = retokenize(source, tokenizer, output_dir=target if beside else None)
    result = target if beside else source
    rebuilt = tmp_path / "rebuilt"
    shutil.copytree(built, rebuilt)
    hfprep.build(config_of(golden_small, rebuilt, tokenizer))
    assert summary.train + summary.val == 8
    assert without_stats(result) == without_stats(rebuilt)
    assert without_stats(result) != {name: data for name, data in before.items() if name != "stats.json"}
    stats, expected = (json.loads((folder / "stats.json").read_bytes()) for folder in (result, rebuilt))
    for name in ("tokenizer", "sha256", "overlong", "total", "versions"):
        assert stats[name] == expected[name], name
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert sorted(path.name for path in result.iterdir()) == sorted(path.name for path in rebuilt.iterdir())
    if beside:
        assert public_files(source) == before
    summary = hfprep.build(config_of(golden_small, result, tokenizer))
    assert (summary.reused, summary.accepted) == (8, 8)  # the build knows that nothing is left to do
    assert hfprep.build(config_of(golden_small, result)).reused == 0  # and that the old tokenizer's ids are gone


def test_other_options_of_the_last_build_hold(tmp_path: Path, golden_small: Path, tokenizer: Path) -> None:
    output = tmp_path / "out"
    config = dataclasses.replace(config_of(golden_small, output), language="en", max_samples=5, hash_audio=True)
    hfprep.build(config)
    summary = retokenize(output, tokenizer)
    assert (summary.accepted, summary.capped, summary.tally.done) == (5, 3, 5)
    settings = json.loads((output / "stats.json").read_bytes())["settings"]
    assert (settings["language"], settings["max_samples"], settings["val_ratio"]) == ("en", 5, 0.3)


def test_a_run_that_was_killed_while_it_copied_is_done_again(tmp_path: Path, built: Path, tokenizer: Path) -> None:
    class Killed(BaseException):
        """Stands for a kill."""

    def kill(point: str, _path: str) -> None:
        if point == "before-rename":
            raise Killed

    target = tmp_path / "target"
    atomic.set_observer(kill)
    try:
        with pytest.raises(Killed):
            retokenize(built, tokenizer, output_dir=target)
    finally:
        atomic.set_observer(None)
    assert not target.exists()
    retokenize(built, tokenizer, output_dir=target)
    again = retokenize(built, tokenizer, output_dir=target)  # after success: nothing is left to do
    assert (again.accepted, again.reused) == (8, 8)


def test_an_output_that_does_not_say_where_it_is_from(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match="run `build` on its manifest with the new --tokenizer and --skip-existing"):
        retokenize(make_output(tmp_path / "out"), tokenizer)
    with pytest.raises(ConfigError, match="is not an output of `build`"):
        retokenize(tmp_path / "missing", tokenizer)


def test_another_output_is_not_overwritten(tmp_path: Path, built: Path, golden_small: Path, tokenizer: Path) -> None:
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:1]
    row = json.loads(lines[0])
    manifest = tmp_path / "other.jsonl"
    manifest.write_text(json.dumps(row | {"audio": str(golden_small / row["audio"])}) + "\n", encoding="utf-8")
    hfprep.build(dataclasses.replace(config_of(golden_small, tmp_path / "other"), manifest=manifest))
    with pytest.raises(StoreError, match=r"contains features of .*other.jsonl; use another"):
        retokenize(built, tokenizer, output_dir=tmp_path / "other")


def test_audio_of_the_build_s_working_folder_is_still_that_of_its_samples(
    golden_small: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's relative paths were those of the folder that the build ran in; it is run elsewhere."""
    for name in ("work", "data", "elsewhere"):
        (tmp_path / name).mkdir()
    row = json.loads((golden_small / "manifest.jsonl").read_text("utf-8").splitlines()[0])
    shutil.copyfile(golden_small / row["audio"], tmp_path / "work" / "clip.wav")
    (tmp_path / "data" / "manifest.jsonl").write_text(json.dumps(row | {"audio": "clip.wav"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    config = dataclasses.replace(config_of(golden_small, tmp_path / "out"), manifest=Path("../data/manifest.jsonl"))
    assert hfprep.build(config).accepted == 1
    monkeypatch.chdir(tmp_path / "elsewhere")
    for output_dir in (None, tmp_path / "beside"):
        summary = retokenize(tmp_path / "out", tokenizer, output_dir=output_dir)
        assert (summary.accepted, summary.rejected) == (1, {})
        folder = output_dir or tmp_path / "out"
        assert audio_finder(folder)("clip.wav") == str(tmp_path / "work" / "clip.wav")
