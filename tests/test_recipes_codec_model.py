"""Codecs of transformers: every code as the library called plainly gives it, in batches of any size."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfprep.errors import CheckpointError, ConfigError, Reason, RejectedSample
from hfprep.recipes.base import Recipe
from hfprep.recipes.codec.model import CodecModel
from hfprep.recipes.codec.recipe import RECIPE, Codec
from hfprep.recipes.options import ModelOptions
from hfprep.tools.demo.codec import CODEBOOK_SIZE, NUM_CODEBOOKS
from tests.random_codecs import CODECS, random_codec, save_codec
from tests.tokenizers import train_base

CHECKED: Recipe = RECIPE  # by mypy: it is all that the seam asks for
SIZES = {"mimi": (24_000, 1920, 12.5), "encodec": (24_000, 320, 75.0), "dac": (16_000, 512, 31.25)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=CODECS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_codec(family, tmp_path_factory.mktemp("codecs") / family)


@pytest.fixture(scope="module")
def model(folder: Path) -> CodecModel:
    return find(folder).load(CPU, "fp32")


def find(folder: Path, **options: Any) -> Codec:
    return RECIPE.find(ModelOptions(codec_model=str(folder), **options))


def plainly(family: str, samples: Tensor) -> Tensor:
    """Codes (codebooks, T) of samples (S,), by the library as its documentation calls it."""
    from transformers import DacFeatureExtractor, EncodecFeatureExtractor

    rate, hop, _ = SIZES[family]
    kind = DacFeatureExtractor(sampling_rate=rate, hop_length=hop) if family == "dac" else EncodecFeatureExtractor()
    inputs = kind(raw_audio=samples.numpy(), sampling_rate=rate, return_tensors="pt")
    options = {"encodec": {"bandwidth": 1.8}}.get(family, {})
    with torch.no_grad():
        codes: Tensor = random_codec(family).encode(inputs["input_values"], **options).audio_codes
    return codes[0, 0] if codes.ndim == 4 else codes[0]


def sound(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def run(model: CodecModel, clips: list[Tensor]) -> list[Tensor]:
    """Each clip's own codes, from one batch."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    codes = model(batch, lengths)["codes"]
    frames = [model.config.num_frames(int(count)) for count in lengths]
    return [row[:, :count] for row, count in zip(codes, frames, strict=True)]


def test_sizes_are_those_of_the_configuration(family: str, folder: Path) -> None:
    found = find(folder)
    rate, hop, code_rate = SIZES[family]
    assert (found.config.sampling_rate, found.config.hop_length, found.schema.code_rate) == (rate, hop, code_rate)
    (codes,) = found.schema.columns
    assert (codes.dtype, codes.dims, codes.size, codes.pad) == ("int16", ("codebooks", "code_len"), 64, 64)
    assert found.schema.fixed == {"codebooks": NUM_CODEBOOKS}
    assert pickle.loads(pickle.dumps(found)).schema == found.schema


def test_the_codes_of_clips_alone_are_those_of_the_library(family: str, model: CodecModel) -> None:
    hop = SIZES[family][1]
    for frames in (1, 2, 7, 40):
        clip = sound(frames * hop, seed=frames)
        (codes,) = run(model, [clip])
        assert codes.dtype == torch.int16
        assert torch.equal(codes, plainly(family, clip))
    assert all(len(row.unique()) > 5 for row in codes)  # or nothing was compared


def test_a_last_part_of_a_frame_is_filled_with_zeros(family: str, model: CodecModel) -> None:
    hop = SIZES[family][1]
    for num_samples in (1, hop - 1, 8 * hop + 1, 19 * hop - 1):
        clip = sound(num_samples, seed=num_samples)
        frames = -(-num_samples // hop)
        filled = torch.cat([clip, torch.zeros(frames * hop - num_samples)])
        (codes,) = run(model, [clip])
        assert codes.shape == (NUM_CODEBOOKS, frames)
        assert torch.equal(codes, plainly(family, filled))
        # Mimi and EnCodec fill it in every layer if they are called with it: only that frame can differ.
        theirs = plainly(family, clip)
        assert theirs.shape == codes.shape
        assert torch.equal(codes[:, :-1], theirs[:, :-1])
        assert family != "dac" or torch.equal(codes, theirs)


def test_padding_that_reaches_real_frames_is_noticed_and_refused(family: str, model: CodecModel) -> None:
    """The library itself shows what is right: DAC looks ahead; EnCodec begins with a mirror image of seven frames."""
    hop = SIZES[family][1]
    changed = []
    for frames in (1, 3, 5, 6, 7, 8, 21, 60):
        clip = sound(frames * hop, seed=frames)
        padded = torch.cat([clip, torch.zeros(9 * hop)])
        changed.append(not torch.equal(plainly(family, padded)[:, :frames], plainly(family, clip)))
        if changed[-1]:
            with pytest.raises(ValueError, match="padding changes the codes"):
                run(model, [clip, sound((frames + 1) * hop)])
    assert any(changed) == (family != "mimi")
    assert model.pads_from == {"mimi": 1, "encodec": model.pads_from, "dac": model.max_frames + 1}[family]
    assert 7 <= model.pads_from <= 13 or family != "encodec"


def test_batches_change_no_code(family: str, model: CodecModel) -> None:
    hop = SIZES[family][1]
    counts = [31, 31, 31] if family == "dac" else [31, 13, 17]
    clips = [sound(count * hop - 7 * index, seed=index) for index, count in enumerate(counts)]
    together = run(model, clips)
    for clip, codes in zip(clips, together, strict=True):
        assert torch.equal(codes, run(model, [clip])[0])


def test_fewer_codebooks_are_the_first_ones(folder: Path, family: str, model: CodecModel) -> None:
    two = find(folder, num_codebooks=2)
    assert two.schema.fixed == {"codebooks": 2}
    clip = sound(20_000)
    assert torch.equal(run(two.load(CPU, "fp32"), [clip])[0], run(model, [clip])[0][:2])
    with pytest.raises(ConfigError, match="--num-codebooks is 5; for this codec it must be from 1 to 4"):
        find(folder, num_codebooks=5)


def test_the_longest_clip_is_stated(family: str, folder: Path, model: CodecModel) -> None:
    assert model.max_frames == int(300 * SIZES[family][2])
    with pytest.raises(ValueError, match=f"1 to {model.max_frames}"):
        model(torch.zeros(1, 1), torch.tensor([301 * SIZES[family][0]]))


def test_samples_far_beyond_full_scale_are_refused(folder: Path) -> None:
    audio = find(folder).audio
    samples = np.array([0.5, -3.0], np.float32)
    assert audio.prepare(samples, on_gpu=False) is samples
    for value in (1e6, -1e6, np.nan):
        with pytest.raises(RejectedSample) as caught:
            audio.prepare(np.array([0.5, value], np.float32), on_gpu=True)
        assert caught.value.reason is Reason.AUDIO_NOT_FINITE


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("encodec", {"audio_channels": 2}, "takes 2 channels"),
        ("encodec", {"normalize": True}, "only be decoded together with scales"),
        ("encodec", {"chunk_length_s": 1.0, "overlap": 0.01}, "overlapping chunks"),
        ("mimi", {"model_type": "wav2vec2"}, "'wav2vec2'; it must be mimi or encodec or dac"),
    ],
)
def test_codecs_that_are_not_for_this_recipe(tmp_path: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    folder = save_codec(kind, tmp_path / kind)
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        find(folder)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--codec-model is missing"):
        RECIPE.find(ModelOptions())
    with pytest.raises(CheckpointError, match="give a folder or a hub id with --codec-model"):
        RECIPE.find(ModelOptions(codec_model="no such folder"))
    with pytest.raises(CheckpointError, match="offline; get it with: hf download kyutai/mimi config"):
        RECIPE.find(ModelOptions(codec_model="kyutai/mimi"))
    folder = save_codec("mimi", tmp_path / "mimi")
    change_config(folder, codebook_size=32)
    with pytest.raises(CheckpointError, match="cannot load it"):
        find(folder).load(CPU, "fp32")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors files are read"):
        find(folder)
    (folder / "config.json").write_text("[]")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not the config\.json"):
        find(folder)


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--somebody--codec"
    folder = save_codec("mimi", place / "snapshots" / "0")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    found = RECIPE.find(ModelOptions(codec_model="somebody/codec"))
    assert found.files["codec/config.json"] == folder / "config.json"
    assert [path.name for path in found.weights] == ["model.safetensors"]


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_codec("dac", tmp_path / "dac")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.conv1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights are missing: encoder\.conv1\.weight"):
        find(folder).load(CPU, "fp32")


def test_another_precision_is_refused(folder: Path) -> None:
    found = find(folder)
    assert found.precisions == ("fp32",)
    with pytest.raises(ConfigError, match="compute in fp32 only"):
        found.load(CPU, "bf16")


def test_texts_are_encoded_as_they_stand(tmp_path: Path) -> None:
    import sentencepiece
    import tokenizers

    folder = save_codec("mimi", tmp_path / "mimi")
    bpe = tmp_path / "bpe.model"
    bpe.write_bytes(train_base())
    text = "Hello, World; Été 7!"
    ours = find(folder, tokenizer=bpe)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(bpe))
    assert ours.text_encoder().encode(text).tolist() == plain.encode(text)  # type: ignore[union-attr]
    assert [column.name for column in ours.schema.columns] == ["codes", "text_ids"]
    assert ours.schema.by_name["text_ids"].size == plain.get_piece_size()

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "hello": 1, "world": 9}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.enable_padding(length=7)
    words.enable_truncation(2)
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    found = find(folder, tokenizer=tmp_path / "words")
    encoder = pickle.loads(pickle.dumps(found.text_encoder()))
    assert encoder.encode("Hello big World").tolist() == [1, 0, 9]
    assert found.schema.by_name["text_ids"].size == 10
    assert encoder.fingerprint() != ours.text_encoder().fingerprint()  # type: ignore[union-attr]
    with pytest.raises(RejectedSample, match="no token"):
        encoder.encode(" ")
    with pytest.raises(RejectedSample, match="incomplete character"):
        encoder.encode("\ud800")


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    folder = save_codec("mimi", tmp_path / "mimi")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "bpe.model").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("tokenizer.json", "is not a tokenizer.json"), ("bpe.model", "is not a SentencePiece model"),
        ("gone.model", "not found"), ("empty", "must contain one of tokenizer.json"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            _ = find(folder, tokenizer=tmp_path / name).schema


def test_codebooks_too_large_for_int16_are_int32() -> None:
    from hfprep.recipes.codec.config import CodecConfig
    from hfprep.recipes.codec.schema import schema_of

    for size, dtype in ((CODEBOOK_SIZE, "int16"), (32767, "int16"), (32768, "int32")):
        config = CodecConfig("dac", 16_000, 320, size, 1)
        assert schema_of(config, 1).by_name["codes"].dtype == dtype
