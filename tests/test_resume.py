"""What a rerun computes again: what changed, column by column, and nothing else.

Builds in this process, counting what is really computed and comparing the inodes of what must stay untouched.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import hfprep
from hfprep.errors import CheckpointError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io import atomic, file_hashes
from hfprep.pipeline import codebook
from hfprep.pipeline.building import build
from hfprep.pipeline.engines.choice import Shared
from hfprep.pipeline.observing import observing
from hfprep.pipeline.summary import Summary
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.schema import Utterance

pytestmark = pytest.mark.usefixtures("two_layers")

CLIPS = ("synth1", "synth2", "synth4", "synth6")
COLUMNS = ("text_ids", "codes", "condition", "emo_vec")
SPLITS = ("train_manifest.jsonl", "val_manifest.jsonl")
OWN_FILES = {"lock", "build.log", "sha256.json"}  # what any run may write, even one that changes nothing


class Place:
    """A copy of some golden clips, their manifest and models, and one output directory."""

    def __init__(self, folder: Path, golden: Path) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.models = golden / "checkpoints"
        shutil.copytree(golden / "audio", folder / "audio")
        lines = (golden / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [row for row in map(json.loads, lines) if row["id"] in CLIPS]
        self.computed: list[str] = []
        self.tokenized: list[str] = []

    def build(self, **options: Any) -> Summary:
        """One build of the rows as they are now; notes what it computed."""
        (self.folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.computed.clear()
        self.tokenized.clear()
        given: dict[str, Any] = {"models": self.models, "output_dir": self.output, "batch_size": 2, "workers": 1}
        config = hfprep.BuildConfig(manifest=self.folder / "manifest.jsonl", **({"val_ratio": 0.3} | given | options))
        return hfprep.build(config)

    def inodes(self, *columns: str) -> dict[str, tuple[int, int]]:
        """Inode and mtime of every artifact of these columns: they change when it is written again."""
        found = {}
        for column in columns or COLUMNS:
            for path in sorted((self.output / column).rglob("*.npy")):
                status = path.stat()
                found[f"{column}/{path.name}"] = (status.st_ino, status.st_mtime_ns)
        return found

    def rewritten(self, before: dict[str, tuple[int, int]]) -> set[str]:
        """Artifacts that are not what they were."""
        now = self.inodes()
        return {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}

    def listed(self) -> dict[str, dict[str, Any]]:
        """Records of both manifests by id."""
        lines = [line for name in SPLITS for line in (self.output / name).read_text(encoding="utf-8").splitlines()]
        records = [json.loads(line) for line in lines]
        assert len({record["id"] for record in records}) == len(records)
        return {record["id"]: record for record in records}

    def row(self, sample_id: str) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in self.rows if row["id"] == sample_id)
        return found

    def with_models(self, name: str) -> Path:
        """A copy of the model set, to be changed."""
        changed = self.folder / name
        shutil.copytree(self.models, changed)
        return changed


def files(*column_names: str, ids: tuple[str, ...] = CLIPS) -> set[str]:
    return {f"{column}/{sample_id}.npy" for column in column_names for sample_id in ids}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> Place:
    """A complete build, to be copied."""
    place = Place(tmp_path_factory.mktemp("finished"), golden_small)
    assert place.build().accepted == len(CLIPS)
    return place


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers are slow to open and never change: once opened they are kept."""
    monkeypatch.setattr("hfprep.recipes.indextts2.recipe.TextTokenizer", kept_tokenizer)


_tokenizers: dict[bytes, TextTokenizer] = {}


def kept_tokenizer(path: Path) -> TextTokenizer:
    content = Path(path).read_bytes()
    if content not in _tokenizers:
        _tokenizers[content] = TextTokenizer(path)
    return _tokenizers[content]


@pytest.fixture
def place(finished: Place, tmp_path: Path, golden_small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A finished build of one's own, with counters of what is computed from now on."""
    copy = Place(tmp_path / "data", golden_small)
    shutil.copytree(finished.output, copy.output, copy_function=shutil.copy2)
    with sqlite3.connect(copy.output / ".hfprep" / "state.sqlite") as state:
        assert state.execute("SELECT count(*) FROM samples").fetchone() == (len(CLIPS),)
    for name in os.listdir(copy.folder / "audio"):  # copytree keeps mtimes to the nanosecond, or this test is void
        ours, theirs = (root / "audio" / name for root in (copy.folder, finished.folder))
        assert ours.stat().st_mtime_ns == theirs.stat().st_mtime_ns
    encode = TextTokenizer.encode

    def note(moment: str, utterances: Sequence[Utterance]) -> None:
        if moment == "batch begins":
            copy.computed.extend(utterance.id for utterance in utterances)

    def noted_encode(self: TextTokenizer, text: str, language: str | None = None) -> np.ndarray:
        copy.tokenized.append(text)
        return encode(self, text, language)

    monkeypatch.setattr(TextTokenizer, "encode", noted_encode)
    with observing(note):
        yield copy


def assert_nothing_computed(place: Place, before: dict[str, tuple[int, int]]) -> None:
    assert place.computed == []
    assert place.tokenized == []
    assert place.rewritten(before) == set()


def no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to read audio or to load a model fails the test."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this run has no business with audio or models")

    monkeypatch.setattr("hfprep.pipeline.intake.load_waveform", never)
    monkeypatch.setattr(FeatureModel, "load", never)


def other_tokenizer(path: Path) -> Path:
    """A small vocabulary of its own: other ids for every text."""
    model = BytesIO()
    words = ["THE FIRST LINE WITH THREE NUMBERS", "SECOND A PRICE OF FOUR DOLLARS", "A LOW RATE TINY STEREO"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=40, minloglevel=2, hard_vocab_limit=False
    )
    path.write_bytes(model.getvalue())
    return path


# Nothing changed


def test_a_rerun_computes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before, listed = place.inodes(), place.listed()
    summary = place.build()
    assert_nothing_computed(place, before)
    assert place.listed() == listed
    assert (summary.accepted, summary.reused, summary.tally.done) == (4, 4, 0)


@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset", "npy,arrow,webdataset"])
def test_a_rerun_reads_no_artifact(kind: str, tmp_path: Path, golden_small: Path) -> None:
    """Their content is zeros when it starts: whoever read any would fail, or find other codes."""
    place = Place(tmp_path / "data", golden_small)
    place.build(format=kind)
    stats = json.loads((place.output / "stats.json").read_bytes())
    artifacts = [path for path in place.output.rglob("*") if path.suffix in (".npy", ".arrow", ".tar")]
    artifacts = [path for path in artifacts if path.name != "places.npy"]
    assert len(artifacts) >= 2
    for path in artifacts:
        path.write_bytes(bytes(path.stat().st_size))
    summary = place.build(format=kind)
    assert (summary.accepted, summary.reused, summary.tally.done, summary.repaired) == (4, 4, 0, 0)
    assert json.loads((place.output / "stats.json").read_bytes())["codebook"] == stats["codebook"]
    assert not any(any(path.read_bytes()) for path in artifacts)


@pytest.mark.parametrize("kind", ["npy", "arrow", "webdataset"])
def test_an_output_without_code_counts_has_its_codes_read_once(kind: str, tmp_path: Path, golden_small: Path) -> None:
    """Version 0.1.0 stored no counts, and a killed run leaves none."""
    place = Place(tmp_path / "data", golden_small)
    place.build(format=kind)

    def stats() -> Any:
        return json.loads((place.output / "stats.json").read_bytes())["codebook"]

    counted = stats()
    with contextlib.closing(sqlite3.connect(place.output / ".hfprep" / "state.sqlite")) as state, state:
        assert state.execute("DELETE FROM meta WHERE key = ?", (codebook.KEY,)).rowcount == 1
    assert (place.build(format=kind).tally.done, stats()) == (0, counted)
    for path in place.output.rglob("*"):
        if path.suffix in (".npy", ".arrow", ".tar") and path.name != "places.npy":
            path.write_bytes(bytes(path.stat().st_size))  # whoever read codes again would count zeros, or fail
    assert (place.build(format=kind).tally.done, stats()) == (0, counted)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7}, {"workers": 3}, {"num_processes": 2}, {"max_samples": 4}, {"strict": True}],
    ids=str,
)
def test_ways_of_running_redo_nothing(place: Place, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    place.build(**options)
    assert_nothing_computed(place, before)


def test_a_cap_that_comes_and_goes_redoes_nothing(place: Place) -> None:
    before = place.inodes()
    assert (place.build(max_samples=2).accepted, len(place.listed())) == (2, 2)
    assert (place.build().accepted, len(place.listed())) == (4, 4)
    assert_nothing_computed(place, before)


def test_a_moved_output_redoes_nothing(place: Place) -> None:
    before = place.inodes()
    place.output = place.output.rename(place.folder / "moved")
    place.build()
    assert_nothing_computed(place, before)


def test_another_val_ratio_only_splits_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    assert place.build(val_ratio=1.0).val == 4
    assert (place.output / SPLITS[0]).read_bytes() == b""
    assert place.build(val_ratio=0.0).train == 4
    assert_nothing_computed(place, before)


def test_rows_that_leave_and_return_are_not_redone(place: Place) -> None:
    before = place.inodes()
    kept, place.rows = place.rows, place.rows[:1]
    place.build()
    assert set(place.listed()) == {"synth1"}
    place.rows = kept
    place.build()
    assert_nothing_computed(place, before)
    assert list(place.listed()) != []


def test_fields_that_no_number_depends_on_are_listed_anew(place: Place) -> None:
    before = place.inodes()
    place.row("synth4").update(speaker="someone else", duration=9.5, note="new")
    place.build()
    assert_nothing_computed(place, before)
    assert (place.listed()["synth4"]["speaker"], place.listed()["synth4"]["duration"]) == ("someone else", 9.5)


def test_appended_rows_are_all_that_is_computed(place: Place, golden_small: Path) -> None:
    before = place.inodes()
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    place.rows += [row for row in map(json.loads, lines) if row["id"] == "synth3"]
    assert place.build().accepted == 5
    assert place.computed == ["synth3"]
    assert place.rewritten(before) == files(*COLUMNS, ids=("synth3",))


# What a row says


def test_a_changed_text_redoes_the_text_ids_of_that_row(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    place.row("synth1")["text"] = "Something else entirely."
    assert place.build().changed == 1
    assert place.tokenized == ["Something else entirely."]
    assert place.rewritten(before) == {"text_ids/synth1.npy"}
    assert place.listed()["synth1"]["text_len"] == len(np.load(place.output / "text_ids" / "synth1.npy"))


def test_a_changed_language_redoes_text_ids(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    place.row("synth2")["language"] = "ja"
    place.build()
    assert place.rewritten(before) == {"text_ids/synth2.npy"}
    place.build(language="en")
    assert place.rewritten(before) <= files("text_ids")


# What the audio holds


def test_a_changed_clip_redoes_its_audio_columns(place: Place) -> None:
    before = place.inodes()
    shutil.copy(place.folder / "audio" / "synth0.wav", place.folder / "audio" / "synth1.wav")
    assert place.build().changed == 1
    assert (place.computed, place.tokenized) == (["synth1"], [])
    assert place.rewritten(before) == files("codes", "condition", "emo_vec", ids=("synth1",))


@pytest.mark.parametrize("seconds", [-5e8, 5e8], ids=["clock went backwards", "touched"])
def test_a_new_mtime_redoes_unless_content_is_hashed(place: Place, seconds: float) -> None:
    clip = place.folder / "audio" / "synth1.wav"
    place.build(hash_audio=True)
    before = place.inodes()
    os.utime(clip, (clip.stat().st_atime, clip.stat().st_mtime + seconds))
    place.build(hash_audio=True)
    assert_nothing_computed(place, before)
    place.build(hash_audio=False)
    assert_nothing_computed(place, before)  # the rerun above has looked at the content under this mtime
    os.utime(clip, (clip.stat().st_atime, clip.stat().st_mtime + seconds))
    place.build(hash_audio=False)
    assert place.computed == ["synth1"]
    assert place.rewritten(before) == files("codes", "condition", "emo_vec", ids=("synth1",))


def test_hashing_can_be_switched_on_and_off(place: Place) -> None:
    before = place.inodes()
    for hashed in (True, True, False, True, False, False):
        assert place.build(hash_audio=hashed).changed == 0
        assert_nothing_computed(place, before)


def test_hashing_sees_what_size_and_mtime_hide(place: Place) -> None:
    place.build(hash_audio=True)
    before = place.inodes()
    clip = place.folder / "audio" / "synth1.wav"
    status, content = clip.stat(), bytearray(clip.read_bytes())
    content[2000:2400] = bytes(400)
    clip.write_bytes(content)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    place.build(hash_audio=True)
    assert place.computed == ["synth1"]
    assert place.rewritten(before) == files("codes", "condition", "emo_vec", ids=("synth1",))


# Models and settings


def test_another_tokenizer_redoes_text_ids_and_opens_no_audio(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    place.build(tokenizer=other_tokenizer(place.folder / "other.model"))
    assert len(place.tokenized) == 4
    assert place.rewritten(before) == files("text_ids")
    assert len(place.listed()) == 4


def test_another_gpt_redoes_latents(place: Place) -> None:
    before = place.inodes()
    models = place.with_models("other-gpt")
    weights = torch.load(models / "gpt.pth", weights_only=True)
    name = next(name for name in weights if name.startswith("conditioning_encoder") and name.endswith("bias"))
    weights[name] = weights[name] + 0.01
    torch.save(weights, models / "gpt.pth")
    place.build(models=models)
    assert sorted(place.computed) == sorted(CLIPS)
    assert place.tokenized == []
    assert place.rewritten(before) == files("condition", "emo_vec")


def test_another_codec_redoes_codes(place: Place) -> None:
    before = place.inodes()
    models = place.with_models("other-codec")
    path = models / "semantic_codec" / "model.safetensors"
    weights = load_file(path)
    name = "quantizer.quantizers.0.codebook.weight"
    save_file(weights | {name: weights[name].flip(0).contiguous()}, path)
    place.build(models=models)
    assert place.rewritten(before) == files("codes")
    assert place.tokenized == []


def test_another_path_for_the_same_models_redoes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_audio(monkeypatch)
    before = place.inodes()
    place.build(models=place.with_models("elsewhere"))
    assert_nothing_computed(place, before)


def test_a_checkpoint_that_changes_under_its_old_size_and_mtime_is_noticed(place: Place) -> None:
    models = place.with_models("mine")
    place.build(models=models)
    before = place.inodes()
    statistics = models / "wav2vec2bert_stats.pt"
    status = statistics.stat()
    values = torch.load(statistics, weights_only=True)
    values["mean"] += 0.5
    torch.save(values, statistics)
    assert statistics.stat().st_size == status.st_size
    os.utime(statistics, ns=(status.st_atime_ns, status.st_mtime_ns))
    place.build(models=models)
    assert place.rewritten(before) == files("codes", "condition", "emo_vec")


def swap(path: Path) -> None:
    """Put a copy in the place of a file: another inode, and the same bytes, size and mtime."""
    beside = path.with_suffix(".other")
    shutil.copy2(path, beside)
    os.replace(beside, path)


@pytest.mark.parametrize(
    ("name", "num_processes"),
    [("gpt.pth", 1), ("w2v-bert-2.0/model.safetensors", 1), ("bpe.model", 1), ("gpt.pth", 2)],
)
def test_a_model_file_replaced_between_hashing_and_loading_stops_the_build(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, num_processes: int
) -> None:
    models, output = place.with_models("mine"), place.folder / "another"
    hashed = file_hashes.FileHashes.sha256

    def then_swapped(self: Any, paths: Any) -> dict[str, str]:
        found = hashed(self, paths)
        swap(models / name)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(file_hashes.FileHashes, "sha256", then_swapped)
        with pytest.raises(CheckpointError, match=f"{name} was replaced or changed while it was being read"):
            place.build(models=models, output_dir=output, num_processes=num_processes)
    assert place.computed == []
    assert not list(output.rglob("*.npy"))
    assert not (output / "train_manifest.jsonl").read_bytes()
    assert place.build(models=models, output_dir=output).accepted == len(CLIPS)


def test_a_model_file_that_changes_while_it_is_loaded_stops_the_build(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, load = place.with_models("mine"), FeatureModel.load

    def then_touched(*arguments: Any, **options: Any) -> FeatureModel:
        model = load(*arguments, **options)
        os.utime(models / "semantic_codec" / "model.safetensors", ns=(0, 0))
        return model

    monkeypatch.setattr(FeatureModel, "load", then_touched)
    with pytest.raises(CheckpointError, match=r"semantic_codec/model.safetensors was replaced or changed"):
        place.build(models=models, output_dir=place.folder / "another")
    assert place.computed == []


def test_models_of_several_data_sets_are_looked_at_when_they_are_loaded_and_not_later(place: Place) -> None:
    """What is in memory is what was hashed, whatever becomes of the files."""
    models, shared = place.with_models("mine"), Shared()
    place.build()  # writes the manifest
    for name in ("one", "two"):
        config = hfprep.BuildConfig(
            manifest=place.folder / "manifest.jsonl", models=models, output_dir=place.folder / name, workers=1
        )
        assert build(config, shared=shared).accepted == len(CLIPS)
        swap(models / "gpt.pth")


def test_another_machine_may_number_inodes_in_its_own_way(tmp_path: Path) -> None:
    path = tmp_path / "gpt.pth"
    path.write_bytes(b"x")
    here = file_hashes.FileIdentity.of(path)
    assert here.is_of(path)
    assert not dataclasses.replace(here, inode=1).is_of(path)
    assert dataclasses.replace(here, inode=1, machine="another").is_of(path)
    assert not dataclasses.replace(here, size=2, machine="another").is_of(path)


def test_another_sampling_rate_on_the_way_redoes_audio_columns(place: Place) -> None:
    before = place.inodes()
    place.build(audio_sr=24000)
    assert place.tokenized == []
    assert place.rewritten(before) == files("codes", "condition", "emo_vec")


def test_overlong_samples_come_and_go_without_being_redone(place: Place) -> None:
    """--drop-overlong says the same of a finished sample as of one that it computes."""
    place.row("synth1")["text"] = "many words to say, " * 60
    place.build()
    fresh = dataclasses.replace(place.build(), output_dir=Path())
    before = place.inodes()
    assert fresh.accepted == 4
    assert place.build(drop_overlong=True).rejected == {"text_too_long": 1}
    of_finished = (place.output / "rejected.jsonl").read_bytes()
    assert set(place.listed()) == set(CLIPS) - {"synth1"}
    assert_nothing_computed(place, before)
    assert place.build().accepted == 4
    assert_nothing_computed(place, before)
    place.build(output_dir=place.folder / "another", drop_overlong=True)
    assert (place.folder / "another" / "rejected.jsonl").read_bytes() == of_finished


# --on-change refuse


def tree_of(output: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mtime of every file, but for lock, log and remembered hashes."""
    found = [path for path in output.rglob("*") if path.is_file() and path.name not in OWN_FILES]
    return {str(path.relative_to(output)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


Change = Callable[[Place], dict[str, Any]]


def change_tokenizer(place: Place) -> dict[str, Any]:
    return {"tokenizer": other_tokenizer(place.folder / "other.model")}


def change_sampling_rate(place: Place) -> dict[str, Any]:
    return {"audio_sr": 24000}


def change_text(place: Place) -> dict[str, Any]:
    place.row("synth4")["text"] = "another text"
    return {}


def change_audio(place: Place) -> dict[str, Any]:
    clip = place.folder / "audio" / "synth6.ogg"
    clip.write_bytes(clip.read_bytes() + b"\0\0")
    return {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_tokenizer, ("tokenizer: was ", ", is ")),
        (change_sampling_rate, ("audio_sr: was 16000, is 24000",)),
        (change_text, ("'synth4'", "text was 'ሰላም፡ለሁሉም።', is 'another text'")),
        (change_audio, ("'synth6'", "size was ", "mtime_ns was ")),
    ],
)
def test_refuse_says_both_values_and_changes_nothing(place: Place, change: Change, said: tuple[str, ...]) -> None:
    options = change(place)
    before = tree_of(place.output)
    with pytest.raises(hfprep.StoreError, match="--on-change") as refusal:
        place.build(on_change="refuse", **options)
    for words in said:
        assert words in str(refusal.value)
    assert tree_of(place.output) == before
    assert place.build(on_change="recompute", **options).accepted == 4
    assert place.build(on_change="refuse", **options).tally.done == 0


def test_refuse_lets_new_rows_through(place: Place, golden_small: Path) -> None:
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    place.rows += [row for row in map(json.loads, lines) if row["id"] == "synth3"]
    assert place.build(on_change="refuse").accepted == 5


# A change of tokenizer that is killed half-way


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture
def killer() -> Iterator[Callable[[str, str, int], None]]:
    """Ends the build at the nth time a point is reached for a path that holds some text."""

    def kill_at(point: str, part: str, nth: int) -> None:
        reached = 0

        def observe(here: str, path: str) -> None:
            nonlocal reached
            reached += here == point and part in path
            if here == point and part in path and reached == nth:
                raise Killed

        atomic.set_observer(observe)

    yield kill_at
    atomic.set_observer(None)


def vocabulary_of(place: Place, sample_id: str, tokenizers: dict[str, Path]) -> str:
    ids = np.load(place.output / "text_ids" / f"{sample_id}.npy").tolist()
    row = place.row(sample_id)
    found = {name: kept_tokenizer(path).encode(row["text"], row["language"]) for name, path in tokenizers.items()}
    (fits,) = (name for name, expected in found.items() if expected.tolist() == ids)
    return fits


def test_no_mixture_is_listed_when_a_change_is_killed_half_way(
    place: Place, killer: Callable[[str, str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfprep.pipeline.features.TEXT_ONLY_BATCH", 1)
    new = other_tokenizer(place.folder / "other.model")
    tokenizers = {"old": place.models / "bpe.model", "new": new}
    killer("before-rename", "text_ids", 3)
    with pytest.raises(Killed):
        place.build(tokenizer=new)
    atomic.set_observer(None)
    assert {vocabulary_of(place, sample_id, tokenizers) for sample_id in place.listed()} == {"new"}
    assert len(place.listed()) == 2
    before = place.inodes()
    assert place.build(tokenizer=new).accepted == 4
    assert place.rewritten(before) == files("text_ids", ids=CLIPS[2:])
    assert {vocabulary_of(place, sample_id, tokenizers) for sample_id in place.listed()} == {"new"}


def test_the_old_tokenizer_finds_what_an_early_kill_left_of_it(
    place: Place, killer: Callable[[str, str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfprep.pipeline.features.TEXT_ONLY_BATCH", 1)
    before = place.inodes()
    new = other_tokenizer(place.folder / "other.model")
    killer("before-rename", "text_ids", 1)
    with pytest.raises(Killed):
        place.build(tokenizer=new)
    atomic.set_observer(None)
    assert place.listed() == {}
    with pytest.raises(hfprep.StoreError, match="tokenizer: was "):
        place.build(tokenizer=new, on_change="refuse")
    place.build()
    assert place.tokenized == [place.row("synth1")["text"]]  # the one that was about to be overwritten
    assert place.rewritten(before) == files("text_ids", ids=("synth1",))
    assert len(place.listed()) == 4


def test_going_back_after_half_a_change_is_refused_with_both_values(
    place: Place, killer: Callable[[str, str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfprep.pipeline.features.TEXT_ONLY_BATCH", 1)
    new = other_tokenizer(place.folder / "other.model")
    killer("before-rename", "text_ids", 3)
    with pytest.raises(Killed):
        place.build(tokenizer=new)
    atomic.set_observer(None)
    with pytest.raises(hfprep.StoreError, match="tokenizer: was "):
        place.build(on_change="refuse")
    place.build()
    assert len(place.tokenized) == 3
    assert place.build(on_change="refuse").tally.done == 0


# --skip-existing


def without_state(place: Place) -> None:
    """Only the artifacts are left."""
    shutil.rmtree(place.output / ".hfprep")
    for name in (*SPLITS, ".preprocessing_progress.txt", "stats.json", "rejected.jsonl"):
        (place.output / name).unlink()


def test_artifacts_without_a_record_are_adopted_when_asked(place: Place) -> None:
    before, listed = place.inodes(), place.listed()
    without_state(place)
    summary = place.build(skip_existing=True)
    assert_nothing_computed(place, before)
    assert (summary.adopted, summary.accepted) == (4, 4)
    assert place.listed() == listed
    assert (place.output / ".preprocessing_progress.txt").read_text().split() == list(CLIPS)
    assert place.build().reused == 4
    assert_nothing_computed(place, before)


def test_artifacts_without_a_record_are_computed_again_when_not_asked(place: Place) -> None:
    without_state(place)
    assert place.build().tally.done == 4
    assert sorted(place.computed) == sorted(CLIPS)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "another dtype", "another width", "padded", "no ids"])
def test_what_is_damaged_is_not_adopted(place: Place, damage: str) -> None:
    folder = place.output / ("text_ids" if damage == "no ids" else "codes" if damage != "another width" else "emo_vec")
    broken = folder / "synth4.npy"
    array = np.load(broken)
    if damage == "gone":
        broken.unlink()
    elif damage in ("empty", "cut"):
        broken.write_bytes(broken.read_bytes()[: 0 if damage == "empty" else -4])
    elif damage == "another dtype":
        np.save(broken, array.astype(np.int64))
    elif damage == "another width":
        np.save(broken, np.zeros(len(array) + 8, np.float32))
        condition = place.output / "condition" / "synth4.npy"
        np.save(condition, np.zeros((32, len(array) + 8), np.float32))
    elif damage == "no ids":
        np.save(broken, array[:0])
    else:
        np.save(broken, np.pad(array, (0, 60)))
    without_state(place)
    summary = place.build(skip_existing=True)
    assert (summary.adopted, summary.accepted, summary.repaired) == (3, 4, damage == "padded")
    assert place.computed == ([] if damage == "no ids" else ["synth4"])
    assert len(place.tokenized) == (damage == "no ids")


def test_pickles_in_artifacts_are_not_opened(place: Place, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(place.output / "codes" / "synth4.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    without_state(place)
    assert place.build(skip_existing=True).accepted == 4
    assert place.computed == ["synth4"]
    assert not (tmp_path / "sprung").exists()


LEGACY = Path(__file__).resolve().parents[2] / "shared" / "legacy-output"

if LEGACY.is_dir():

    def test_an_output_of_the_old_scripts_is_mended(tmp_path: Path, shared_golden: Path) -> None:
        """Codes with padding in them are known by their length; what is sound is kept as it is."""
        output = tmp_path / "out"
        shutil.copytree(LEGACY, output)
        for path in (output, *output.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        before = {path: (path.stat().st_ino, path.read_bytes()) for path in output.rglob("*.npy")}
        config = hfprep.BuildConfig(
            manifest=shared_golden / "manifest.jsonl",
            models=shared_golden / "checkpoints",
            output_dir=output,
            skip_existing=True,
            val_ratio=0.3,
        )
        summary = hfprep.build(config)
        assert (summary.adopted, summary.repaired, summary.tally.done, summary.accepted) == (2, 4, 4, 6)
        changed = {path.stem for path, was in before.items() if (path.stat().st_ino, path.read_bytes()) != was}
        lengths = {path.stem: len(np.load(path)) for path in (output / "codes").glob("*.npy")}
        sound = {"1088-134315-0000", "cv-651325"}
        assert changed == set(lengths) - sound
        texts = [path for path in before if path.parent.name == "text_ids"]
        assert all((path.stat().st_ino, path.read_bytes()) == before[path] for path in texts)
        for line in (shared_golden / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert abs(lengths[row["id"]] - 50 * row["duration"]) < 2
        again = hfprep.build(dataclasses.replace(config, skip_existing=False))
        assert (again.reused, again.tally.done) == (6, 0)
