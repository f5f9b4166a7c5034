"""`extend-checkpoint`: rows for the new ids, every other tensor byte for byte, little memory, nothing half-written."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hfprep.cli import app as cli
from hfprep.errors import CheckpointError, ConfigError, StoreError
from hfprep.tools.extend_checkpoint import CheckpointOptions, extend_checkpoint
from hfprep.tools.tokenizer.extend import ExtendOptions, extend
from hfprep.tools.tokenizer.model_file import with_pieces
from hfprep.tools.tokenizer.vocabulary import Vocabulary
from tests.tokenizers import AMHARIC, train_base, write_manifest

pytestmark = pytest.mark.usefixtures("normalised_once")

WIDTH = 6
CONFIG = """# The model's own config
gpt:
  model_dim: 6
  number_text_tokens: {text_ids}  # as trained
  start_text_token: 0
  stop_text_token: 1
w2v_stat: stats.pt
gpt_checkpoint: gpt.pth
"""


@pytest.fixture
def tokenizers(tmp_path: Path) -> tuple[Path, Path]:
    """A base and the base extended by Amharic."""
    base, new = tmp_path / "bpe.model", tmp_path / "new.model"
    base.write_bytes(train_base())
    manifest = write_manifest(tmp_path / "am.jsonl", AMHARIC)
    extend(ExtendOptions(base=base, manifests=(manifest,), output=new))
    return base, new


def size_of(path: Path) -> int:
    return Vocabulary(path, "--base").size


def random_state(text_rows: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(4, 4, generator=generator)
    return {
        "text_embedding.weight": torch.randn(text_rows, WIDTH, generator=generator).to(dtype),
        "gpt.h.0.ln_1.weight": torch.tensor([1.0, float("nan"), -0.0]),
        "mel_head.weight": shared[:2],
        "mel_embedding.weight": shared,
        "text_head.weight": torch.randn(text_rows, WIDTH, generator=generator).to(dtype),
        "text_head.bias": torch.randn(text_rows, generator=generator).to(dtype),
        "steps": torch.tensor(7, dtype=torch.int64),
    }


def model_files(folder: Path, values: Any, text_ids: int) -> dict[str, Any]:
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(text_ids=text_ids), encoding="utf-8")
    torch.save({"mean": torch.zeros(3), "var": torch.ones(3)}, folder / "stats.pt")
    torch.save(values, folder / "gpt.pth")
    return {"gpt_checkpoint": folder / "gpt.pth", "config": folder / "config.yaml"}


def loaded(path: Path) -> dict[str, Any]:
    values = torch.load(path, weights_only=True)
    return values.get("model", values)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_form = one.dtype == other.dtype and one.shape == other.shape
    return same_form and one.contiguous().view(-1).view(torch.uint8).equal(
        other.contiguous().view(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_means_and_everything_else_is_as_it_was(
    tokenizers: tuple[Path, Path], tmp_path: Path, nested: bool, dtype: torch.dtype
) -> None:
    base, new = tokenizers
    before, after = size_of(base), size_of(new)
    state = random_state(before + 1, dtype)
    values = {"model": state, "step": 12} if nested else state
    files = model_files(tmp_path / "old", values, before)
    found = extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "new"))
    assert (found.text_ids_before, found.text_ids, found.new_rows) == (before, after, after - before)
    result = torch.load(tmp_path / "new" / "gpt.pth", weights_only=True)
    if nested:
        assert result["step"] == 12
        result = result["model"]
    assert list(result) == list(state)
    vocabulary, pieces = Vocabulary(base, "--base"), Vocabulary(new, "--tokenizer").pieces
    for name, old in state.items():
        if not name.startswith("text_"):
            assert same_bytes(result[name], old), name
            continue
        assert result[name].shape == (after + 1, *old.shape[1:])
        assert same_bytes(result[name][:before], old[:before])
        assert same_bytes(result[name][-1], old[-1])
        for number in range(before, after):
            ids = vocabulary.ids(pieces[number])
            assert ids
            expected = torch.stack([old[index].float() for index in ids]).sum(dim=0) / len(ids)
            torch.testing.assert_close(result[name][number], expected.to(dtype))
    assert (
        result["mel_head.weight"].untyped_storage().data_ptr()
        == result["mel_embedding.weight"].untyped_storage().data_ptr()
    )


def test_a_row_is_the_mean_of_the_rows_of_the_pieces_that_stood_for_it(tmp_path: Path) -> None:
    """By hand: with byte fallback, ሰ (E1 88 B0) is the mean of three rows."""
    base, new = tmp_path / "bpe.model", tmp_path / "new.model"
    base.write_bytes(train_base(byte_fallback=True))
    extend(ExtendOptions(base=base, manifests=(write_manifest(tmp_path / "m.jsonl", ["ሰ ሰ"]),), output=new))
    pieces = Vocabulary(new, "--tokenizer").pieces
    state = random_state(size_of(base) + 1)
    files = model_files(tmp_path / "old", state, size_of(base))
    extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "out"))
    old, result = state["text_embedding.weight"], loaded(tmp_path / "out" / "gpt.pth")["text_embedding.weight"]
    in_bytes = [pieces.index(f"<0x{value:02X}>") for value in "ሰ".encode()]
    torch.testing.assert_close(result[pieces.index("ሰ")], old[in_bytes].mean(dim=0))
    with_space = [pieces.index("\u2581"), *in_bytes]
    torch.testing.assert_close(result[pieces.index("\u2581ሰ")], old[with_space].mean(dim=0))


def test_the_new_folder_is_complete_and_its_config_says_the_new_number(
    tokenizers: tuple[Path, Path], tmp_path: Path
) -> None:
    base, new = tokenizers
    files = model_files(tmp_path / "old", random_state(size_of(base) + 1), size_of(base))
    arguments = [
        "extend-checkpoint",
        "--base",
        str(base),
        "--tokenizer",
        str(new),
        "--output-dir",
        str(tmp_path / "new"),
    ]
    arguments += ["--gpt-checkpoint", str(files["gpt_checkpoint"]), "--config", str(files["config"])]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert f"{size_of(new)} text ids (before: {size_of(base)})" in result.output
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"gpt.pth", "config.yaml", "bpe.model", "stats.pt"}
    assert (tmp_path / "new" / "config.yaml").read_text(encoding="utf-8") == CONFIG.format(text_ids=size_of(new))
    assert (tmp_path / "new" / "bpe.model").read_bytes() == new.read_bytes()
    assert (tmp_path / "new" / "stats.pt").read_bytes() == (tmp_path / "old" / "stats.pt").read_bytes()


def test_a_config_in_another_form_is_written_anew(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    files = model_files(tmp_path / "old", random_state(size_of(base) + 1), size_of(base))
    values = {"gpt": {"number_text_tokens": 5, "x": [1]}, "note": "number_text_tokens: 5"}
    files["config"].write_text(json.dumps(values), encoding="utf-8")
    extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "new"))
    written = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text(encoding="utf-8"))
    assert written == {"gpt": {"number_text_tokens": size_of(new), "x": [1]}, "note": "number_text_tokens: 5"}


def test_rows_that_are_there_already_are_filled(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """A checkpoint that someone has grown by more rows than there are new pieces keeps its size."""
    base, new = tokenizers
    rows = size_of(new) + 51
    state = random_state(rows)
    files = model_files(tmp_path / "old", state, rows - 1)
    found = extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "new"))
    result = loaded(tmp_path / "new" / "gpt.pth")["text_embedding.weight"]
    old = state["text_embedding.weight"]
    assert found.text_ids == rows - 1
    assert result[: size_of(base)].equal(old[: size_of(base)])
    assert result[size_of(new) :].equal(old[size_of(new) :])
    assert not (result[size_of(base) : size_of(new)] == old[size_of(base) : size_of(new)]).any()


def test_the_result_has_the_published_shapes_but_for_the_text_rows(tmp_path: Path, repository: Path) -> None:
    """Every name of the published gpt.pth in its full shape, most of them views of a single number."""
    base, new = tmp_path / "bpe.model", tmp_path / "new.model"
    small = train_base()
    base.write_bytes(small)
    unused = [(f"QZ{number}", -1000.0 - number) for number in range(12_000 - size_of(base))]
    base.write_bytes(with_pieces(small, unused, 12_000))
    extend(ExtendOptions(base=base, manifests=(write_manifest(tmp_path / "am.jsonl", AMHARIC),), output=new))
    keys = json.loads((repository / "tests" / "data" / "checkpoint_keys.json").read_text(encoding="utf-8"))["gpt.pth"]
    one = torch.ones(1)
    state = {name: one.expand(shape) for name, shape in keys.items()}
    state["text_embedding.weight"] = torch.randn(keys["text_embedding.weight"])
    files = model_files(tmp_path / "old", state, 12_000)
    extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "new"))
    result = loaded(tmp_path / "new" / "gpt.pth")
    rows = size_of(new) + 1
    grown = {name: [rows, *keys[name][1:]] for name in ("text_embedding.weight", "text_head.weight", "text_head.bias")}
    assert {name: list(tensor.shape) for name, tensor in result.items()} == keys | grown
    assert rows > 12_001


MEASURED = """
import sys, threading, torch
from pathlib import Path
from hfprep.tools.extend_checkpoint import CheckpointOptions, extend_checkpoint

def private():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))

def watch(done):
    while not done.wait(0.002):
        seen.append(private())

def watched(*arguments):
    done = threading.Event()
    thread = threading.Thread(target=watch, args=(done,))
    thread.start()
    save(*arguments)
    done.set()
    thread.join()

folder, base, new, out = map(Path, sys.argv[1:])
files = {"gpt_checkpoint": folder / "gpt.pth", "config": folder / "config.yaml"}
seen, save, torch.save, before = [], torch.save, watched, private()
extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=out))
print(len(seen), max(seen) - before)
"""


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder that is not in memory, where mapped files would count as shared memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_not_changed_stays_in_the_mapping(tokenizers: tuple[Path, Path], on_disk: Path) -> None:
    base, new = tokenizers
    state = random_state(size_of(base) + 1) | {f"gpt.{n}.weight": torch.full((5_000_000,), float(n)) for n in range(10)}
    model_files(on_disk / "old", state, size_of(base))  # 200 MB
    del state
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, (on_disk / "old", base, new, on_disk / "new"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen, kilobytes = map(int, done.stdout.split())
    assert seen > 3
    assert kilobytes < 60_000
    result = loaded(on_disk / "new" / "gpt.pth")
    assert all((result[f"gpt.{n}.weight"] == n).all() for n in range(10))


def test_what_does_not_fit_is_refused_and_nothing_is_written(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    base, new = tokenizers
    files = model_files(tmp_path / "old", random_state(size_of(base) + 1), size_of(base))
    out = tmp_path / "new"

    def run(**changed: Path) -> None:
        extend_checkpoint(CheckpointOptions(**({**files, "base": base, "tokenizer": new, "output_dir": out} | changed)))

    other = tmp_path / "other.model"
    other.write_bytes(train_base(byte_fallback=True))
    with pytest.raises(ConfigError, match=r"is not an extension of --base .*: id 3 is"):
        run(tokenizer=other)
    with pytest.raises(ConfigError, match="there is nothing to extend"):
        run(tokenizer=base)
    with pytest.raises(ConfigError, match=r"--output-dir .* is the checkpoint's own folder"):
        run(output_dir=tmp_path / "old")
    small = model_files(tmp_path / "small", random_state(40), 39)
    with pytest.raises(ConfigError, match="has rows for 39: it was trained with another tokenizer"):
        run(**small)
    files["config"].write_text("gpt: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no gpt\.number_text_tokens"):
        run()
    files["config"].write_text(f"gpt:\n  number_text_tokens: 3\n  stop_text_token: {size_of(base)}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gpt\.stop_text_token in .* is \d+, which would be the id of a new piece"):
        run()
    state = random_state(size_of(base) + 1)
    torch.save(state | {"text_head.bias": torch.zeros(3)}, files["gpt_checkpoint"])
    with pytest.raises(CheckpointError, match="different numbers of rows"):
        run()
    del state["text_head.bias"]
    torch.save(state, files["gpt_checkpoint"])
    with pytest.raises(CheckpointError, match=r"has no text_head\.bias"):
        run()
    torch.save({"model": CheckpointOptions}, files["gpt_checkpoint"])
    with pytest.raises(CheckpointError, match="never executes pickles"):
        run()
    assert not out.exists()


def test_a_write_that_fails_leaves_no_checkpoint(
    tokenizers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, new = tokenizers
    files = model_files(tmp_path / "old", random_state(size_of(base) + 1), size_of(base))

    def full(_values: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match=r"cannot write .*gpt\.pth: .*; free some space"):
        extend_checkpoint(CheckpointOptions(**files, base=base, tokenizer=new, output_dir=tmp_path / "new"))
    assert not list((tmp_path / "new").glob("gpt.pth*"))


def test_a_language_of_indextts25_starts_from_another(golden25_small: Path, tmp_path: Path) -> None:
    models = golden25_small / "checkpoints"
    arguments = ["extend-checkpoint", "--gpt-checkpoint", str(models / "gpt.pth"), "--output-dir", str(tmp_path)]
    arguments += ["--config", str(models / "config.yaml"), "--language", "am", "--like", "en"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    before, after = loaded(models / "gpt.pth"), loaded(tmp_path / "gpt.pth")
    assert list(after) == list(before)
    for name, old in before.items():
        if name == "lang_embedding.weight":
            assert after[name][75].equal(old[0])  # am and en
            assert not old[75].equal(old[0])
            rest = [row for row in range(len(old)) if row != 75]
            assert same_bytes(after[name][rest], old[rest])
        else:
            assert same_bytes(after[name], old), name
    assert (tmp_path / "config.yaml").read_bytes() == (models / "config.yaml").read_bytes()
    assert (tmp_path / "wav2vec2bert_stats.pt").read_bytes() == (models / "wav2vec2bert_stats.pt").read_bytes()


def test_a_language_without_a_row_or_of_another_model_is_refused(
    tokenizers: tuple[Path, Path], golden25_small: Path, tmp_path: Path
) -> None:
    base, new = tokenizers
    models = golden25_small / "checkpoints"
    files: dict[str, Any] = {
        "gpt_checkpoint": models / "gpt.pth",
        "config": models / "config.yaml",
        "output_dir": tmp_path / "new",
    }
    with pytest.raises(
        ConfigError, match=r"--language is 'gez'; it must be a language that IndexTTS-2\.5 has a row for .*: en, zh"
    ):
        extend_checkpoint(CheckpointOptions(**files, language="gez", like="am"))
    with pytest.raises(ConfigError, match="--like is 'common'"):
        extend_checkpoint(CheckpointOptions(**files, language="am", like="common"))
    for options in (
        {},
        {"language": "am"},
        {"base": base},
        {"base": base, "tokenizer": new, "language": "am", "like": "en"},
    ):
        with pytest.raises(ConfigError, match=r"give --base and --tokenizer \(IndexTTS-2\), or --language and --like"):
            CheckpointOptions(**files, **options)
    old = model_files(tmp_path / "old", random_state(size_of(base) + 1), size_of(base))
    with pytest.raises(ConfigError, match=r"--language is for IndexTTS-2\.5: .* has no lang_embedding\.weight"):
        extend_checkpoint(CheckpointOptions(**old, output_dir=tmp_path / "new", language="am", like="en"))
    assert not (tmp_path / "new").exists()
