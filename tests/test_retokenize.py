"""Text ids made anew: the same as a build with that tokenizer gives, no audio read, whole at every instant."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io import atomic
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.retokenizing import retokenize
from tests.sample_sets import make_output, public_files

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
    counts = retokenize(source, tokenizer, output_dir=target if beside else None)
    result = target if beside else source
    rebuilt = tmp_path / "rebuilt"
    shutil.copytree(built, rebuilt)
    hfprep.build(config_of(golden_small, rebuilt, tokenizer))
    assert sum(counts.values()) == 8
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


def test_no_audio_is_needed(tmp_path: Path, tokenizer: Path) -> None:
    """An output of which nothing but the npy layout is left, with awkward ids."""
    output = make_output(tmp_path / "out")
    model = TextTokenizer(tokenizer)
    retokenize(output, tokenizer)
    check_consistent(output, lambda ids, text, language: np.array_equal(ids, model.encode(text, language)))


def check_consistent(output: Path, right: Callable[[np.ndarray, str, str | None], bool]) -> None:
    """Every record names a complete file of the length that it says."""
    seen = []
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        with open(output / name, "rb") as stream:
            for record in map(json.loads, stream):
                ids = np.load(output / record["text_ids_path"])
                assert len(ids) == record["text_len"]
                assert right(ids, record["text"], record["language"])
                seen.append(record["id"])
    assert len(seen) == len(set(seen)) == 12


class _Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def observed() -> Iterator[None]:
    yield
    atomic.set_observer(None)


@pytest.mark.usefixtures("observed")
def test_manifests_and_files_agree_at_every_instant(tmp_path: Path, tokenizer: Path) -> None:
    """Looked at, and killed, at every named point; the rerun ends as a quiet run does, whatever was left."""
    source = make_output(tmp_path / "source")
    model = TextTokenizer(tokenizer)
    quiet = tmp_path / "quiet"
    shutil.copytree(source, quiet)
    old = {record_id: data for record_id, data in public_files(source).items() if record_id.startswith("text_ids/")}

    def known(ids: np.ndarray, text: str, language: str | None) -> bool:
        was = any(data.endswith(ids.tobytes()) for data in old.values())
        return was or np.array_equal(ids, model.encode(text, language))

    points: list[str] = []

    def look(point: str, path: str) -> None:
        points.append(f"{point} {Path(path).name}")
        check_consistent(quiet, known)

    atomic.set_observer(look)
    retokenize(quiet, tokenizer)
    atomic.set_observer(None)
    expected = public_files(quiet)
    late = [index for index, point in enumerate(points) if "manifest" in point or "text_ids" in point]
    assert len(late) > 8
    for stop in [5, *late[::3]]:
        output = tmp_path / f"killed-{stop}"
        shutil.copytree(source, output)
        seen = 0

        def kill(point: str, path: str, stop: int = stop) -> None:
            nonlocal seen
            if seen == stop:
                raise _Killed
            seen += 1

        atomic.set_observer(kill)
        with pytest.raises(_Killed):
            retokenize(output, tokenizer)
        atomic.set_observer(None)
        check_consistent(output, known)
        retokenize(output, tokenizer)
        assert public_files(output) == expected
        shutil.rmtree(output)


def test_a_text_without_ids_changes_nothing(tmp_path: Path, tokenizer: Path) -> None:
    def change(record: dict[str, object], number: int) -> dict[str, object]:
        return record | {"text": "\u3000"} if number == 4 else record

    output = make_output(tmp_path / "out", change=change)
    before = public_files(output)
    with pytest.raises(StoreError, match="1 texts have no ids under this tokenizer, so nothing was changed"):
        retokenize(output, tokenizer)
    assert public_files(output).items() >= before.items()
    with pytest.raises(StoreError, match="1 texts have no ids"):
        retokenize(output, tokenizer, output_dir=tmp_path / "beside")
    assert not (tmp_path / "beside").exists()


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path: Path, golden_small: Path, tokenizer: Path) -> None:
    config = tmp_path / "config.yaml"
    text = (golden_small / "checkpoints" / "config.yaml").read_text(encoding="utf-8")
    lines = ["  number_text_tokens: 7" if "number_text_tokens" in line else line for line in text.splitlines()]
    config.write_text("\n".join(lines), encoding="utf-8")
    output = make_output(tmp_path / "out")
    with pytest.raises(ConfigError, match="has only 7"):
        retokenize(output, tokenizer, config=config)
    with pytest.raises(ConfigError, match="tokenizer not found"):
        retokenize(output, tmp_path / "missing.model")
    with pytest.raises(StoreError, match="holds no manifests"):
        retokenize(tmp_path / "missing", tokenizer)
