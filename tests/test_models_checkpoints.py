"""The checkpoint files: every published tensor is accounted for, what is wrong is said, and nothing is copied."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hfprep.errors import CheckpointError
from hfprep.models.configs import SemanticEncoderConfig
from hfprep.models.tensor_files import read_safetensors, read_torch_file
from hfprep.models.tensor_shapes import read_shapes
from hfprep.recipes import tensors as named_tensors
from hfprep.recipes.finding import GPT_FILE, SEMANTIC_FILE, STATISTICS_FILE
from hfprep.recipes.indextts2.checkpoints import (
    CODEC_FILE,
    CONDITIONER_PREFIXES,
    expected_shapes,
    load_conditioners,
    load_semantic_codec,
)
from hfprep.recipes.indextts2.config import PUBLISHED, ModelConfig
from hfprep.recipes.networks import (
    CODEC_IGNORED,
    CODEC_PREFIXES,
    EMOTION_PREFIXES,
    SEMANTIC_PREFIXES,
    load_semantic_encoder,
)
from scripts.benchmark.plain_models import read_tensors

# Under these prefixes every tensor must be known; the others are of no use to any feature.
NEEDED_PREFIXES = {
    GPT_FILE: CONDITIONER_PREFIXES + EMOTION_PREFIXES,
    CODEC_FILE: CODEC_PREFIXES,
    SEMANTIC_FILE: SEMANTIC_PREFIXES,
}
IGNORED_PREFIXES = {
    GPT_FILE: ("gpt.", "text_embedding.", "mel_embedding.", "text_pos_embedding.", "mel_pos_embedding.", "final_norm.",
               "text_head.", "mel_head.", "speed_emb."),
    CODEC_FILE: CODEC_IGNORED,
    SEMANTIC_FILE: ("masked_spec_embed", "adapter.", "intermediate_ffn.", "encoder.layers."),
    STATISTICS_FILE: (),
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def check_tensors(tensors: Mapping[str, Tensor], shapes: Shapes, *, file: str, path: Path) -> None:
    """As the loaders of this file call it."""
    ignored = CODEC_IGNORED if file == CODEC_FILE else ()
    named_tensors.check_tensors(tensors, shapes, path=path, needed=NEEDED_PREFIXES[file], ignored=ignored)


def unknown_names(names: Iterable[str], shapes: Mapping[str, object], file: str) -> list[str]:
    """Which of a file's tensor names are neither needed (`shapes`) nor knowingly ignored."""

    def ignored(name: str) -> bool:
        layer = file == SEMANTIC_FILE and name.startswith(NEEDED_PREFIXES[SEMANTIC_FILE])
        return not layer and name.startswith(IGNORED_PREFIXES[file])

    return [name for name in names if name not in shapes and not ignored(name)]


@pytest.fixture(scope="module")
def published() -> dict[str, Shapes]:
    """Every tensor of the published files; the stacks that the listing gives one layer of are written out."""
    listing = json.loads((Path(__file__).parent / "data/checkpoint_keys.json").read_text())
    files = {file: {name: tuple(shape) for name, shape in shapes.items()} for file, shapes in listing.items()}
    for file, prefix, count in ((SEMANTIC_FILE, "encoder.layers.", 24), (GPT_FILE, "gpt.h.", 24)):
        layer = {name: shape for name, shape in files[file].items() if name.startswith(f"{prefix}0.")}
        for index in range(1, count):
            files[file] |= {name.replace(f"{prefix}0.", f"{prefix}{index}.", 1): s for name, s in layer.items()}
    return files


@pytest.fixture(scope="module")
def expected(golden_small: Path) -> dict[str, Shapes]:
    values = json.loads((golden_small / "checkpoints/w2v-bert-2.0/config.json").read_text())
    values |= {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24}
    return expected_shapes(PUBLISHED, SemanticEncoderConfig.from_values(values))


def meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("file", [GPT_FILE, CODEC_FILE, SEMANTIC_FILE])
def test_every_published_tensor_is_needed_or_knowingly_ignored(
    published: dict[str, Shapes], expected: dict[str, Shapes], file: str
) -> None:
    check_tensors(meta(published[file]), expected[file], file=file, path=Path(file))
    assert unknown_names(published[file], expected[file], file) == []
    assert expected[file].items() <= published[file].items()


def test_most_of_the_gpt_checkpoint_is_not_needed(published: dict[str, Shapes], expected: dict[str, Shapes]) -> None:
    def count(shapes: Shapes) -> int:
        return sum(torch.Size(shape).numel() for shape in shapes.values())

    assert count(published[GPT_FILE]) // 10**6 == 871
    assert count(expected[GPT_FILE]) // 10**6 == 344


@pytest.mark.parametrize("file", [GPT_FILE, CODEC_FILE, SEMANTIC_FILE])
def test_each_needed_tensor_is_missed_and_measured(
    published: dict[str, Shapes], expected: dict[str, Shapes], file: str
) -> None:
    for name, shape in expected[file].items():
        if ".layers." in name and ".layers.16." not in name and file == SEMANTIC_FILE:
            continue  # seventeen equal layers: the last stands for all
        tensors = meta(published[file])
        del tensors[name]
        with pytest.raises(CheckpointError, match=rf"missing \(1\):\s+{re.escape(name)} "):
            check_tensors(tensors, expected[file], file=file, path=Path(file))
        tensors[name] = torch.empty((*shape, 2), device="meta")
        wrong = re.escape(f"{name} is {[*shape, 2]}, not {list(shape)}")
        with pytest.raises(CheckpointError, match=wrong):
            check_tensors(tensors, expected[file], file=file, path=Path(file))


def test_a_layer_more_than_the_config_says_is_unexpected(
    published: dict[str, Shapes], expected: dict[str, Shapes]
) -> None:
    tensors = meta(published[GPT_FILE])
    tensors["conditioning_encoder.encoders.6.norm_ff.weight"] = torch.empty(512, device="meta")
    with pytest.raises(CheckpointError, match=r"unexpected \(1\):\s+conditioning_encoder\.encoders\.6\.norm_ff"):
        check_tensors(tensors, expected[GPT_FILE], file=GPT_FILE, path=Path("gpt.pth"))


def test_another_prefix_is_named_and_long_lists_are_cut(
    published: dict[str, Shapes], expected: dict[str, Shapes]
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in meta(published[GPT_FILE]).items()}
    with pytest.raises(CheckpointError) as caught:
        check_tensors(tensors, expected[GPT_FILE], file=GPT_FILE, path=Path("my/gpt.pth"))
    message = str(caught.value)
    assert "my/gpt.pth" in message
    assert f"missing ({len(expected[GPT_FILE])})" in message
    assert f"and {len(expected[GPT_FILE]) - 10} more" in message
    assert "'module.'" in message
    assert len(message.splitlines()) < 20


def test_whole_numbers_for_weights_are_refused(published: dict[str, Shapes], expected: dict[str, Shapes]) -> None:
    tensors = meta(published[GPT_FILE])
    tensors["emo_layer.bias"] = torch.empty(1280, dtype=torch.int8, device="meta")
    with pytest.raises(CheckpointError, match=r"emo_layer\.bias is torch\.int8"):
        check_tensors(tensors, expected[GPT_FILE], file=GPT_FILE, path=Path("gpt.pth"))


def test_statistics_are_the_semantic_width(expected: dict[str, Shapes]) -> None:
    assert expected[STATISTICS_FILE] == {"mean": (1024,), "var": (1024,)}


# From here on: real files, small.


@pytest.fixture
def folder(golden_small: Path) -> Path:
    return golden_small / "checkpoints"


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return ModelConfig.read(folder / "config.yaml")


def test_expected_shapes_are_those_of_the_small_set(folder: Path, config: ModelConfig) -> None:
    shapes = expected_shapes(config, SemanticEncoderConfig.read(folder / "w2v-bert-2.0/config.json"))
    for file, needed in shapes.items():
        tensors = read_tensors(folder / file)
        assert needed == {name: tuple(tensors[name].shape) for name in needed}
        assert unknown_names(tensors, needed, file) == []


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from /proc")
def test_weights_stay_in_the_mapped_files(folder: Path, config: ModelConfig) -> None:
    semantic = folder / "w2v-bert-2.0"
    condition, emotion = load_conditioners(folder / "gpt.pth", config, semantic_size=32)
    codec = load_semantic_codec(folder / CODEC_FILE, config)
    statistics = folder / STATISTICS_FILE
    encoder = load_semantic_encoder(semantic / "config.json", [semantic / "model.safetensors"], statistics)
    modules: dict[Path, list[nn.Module]] = {
        folder / "gpt.pth": [condition, emotion],
        folder / CODEC_FILE: [codec.embed, codec.blocks, codec.out],
        semantic / "model.safetensors": [encoder.feature_projection, encoder.layers],
    }
    for path, parts in modules.items():
        ranges = mapped_ranges(path)
        weights = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
        for name, tensor in weights.items():
            assert any(start <= tensor.data_ptr() < end for start, end in ranges), f"{path.name}: {name} was copied"


def test_a_state_dict_may_stand_under_model(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    tensors = read_tensors(folder / "gpt.pth")
    torch.save({"model": tensors, "step": 3, "note": "fine-tuned"}, tmp_path / "gpt.pth")
    plain, _ = load_conditioners(folder / "gpt.pth", config, semantic_size=32)
    nested, _ = load_conditioners(tmp_path / "gpt.pth", config, semantic_size=32)
    assert torch.equal(plain.perceiver.latents, nested.perceiver.latents)


def test_half_precision_weights_become_float32(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    torch.save({name: t.half() for name, t in read_tensors(folder / "gpt.pth").items()}, tmp_path / "gpt.pth")
    condition, emotion = load_conditioners(tmp_path / "gpt.pth", config, semantic_size=32)
    assert {t.dtype for part in (condition, emotion) for t in part.state_dict().values()} == {torch.float32}


def test_shards_are_read_together(folder: Path, tmp_path: Path) -> None:
    tensors = read_tensors(folder / "w2v-bert-2.0/model.safetensors")
    names = sorted(tensors)
    paths = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({name: tensors[name] for name in names[:300]}, paths[0])
    save_file({name: tensors[name] for name in names[300:]}, paths[1])
    both = read_safetensors(paths)
    assert both.keys() == tensors.keys()
    assert all(torch.equal(both[name], tensors[name]) for name in names)


def test_the_weight_norm_of_the_quantizer_is_folded(folder: Path, config: ModelConfig) -> None:
    tensors = read_tensors(folder / CODEC_FILE)
    codec = load_semantic_codec(folder / CODEC_FILE, config)
    length = tensors["quantizer.quantizers.0.in_project.weight_g"].flatten()
    torch.testing.assert_close(codec.quantizer.weight.norm(dim=1), length.abs())
    torch.testing.assert_close(codec.quantizer.codebook.norm(dim=1), torch.ones(config.semantic_codec.codebook_size))


class Executed:
    """A pickle that leaves a trace when it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return open_and_close, (str(self.trace),)


def open_and_close(path: str) -> None:
    Path(path).touch()


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": {}, "extra": Executed(trace)}, tmp_path / "gpt.pth")
    for read in (read_torch_file, read_shapes):
        with pytest.raises(CheckpointError, match="never executes pickles"):
            read(tmp_path / "gpt.pth")
    assert not trace.exists()
    torch.load(tmp_path / "gpt.pth", weights_only=False)  # the trap does work where it is let to
    assert trace.exists()


def test_shapes_are_read_without_torch(folder: Path, tmp_path: Path) -> None:
    tensors = read_torch_file(folder / "gpt.pth")
    assert read_shapes(folder / "gpt.pth") == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layer = torch.nn.Linear(3, 2, dtype=torch.bfloat16)  # its state has metadata beside the tensors
    torch.save({"model": layer.state_dict(), "step": 7}, tmp_path / "nested.pth")
    parameters = {"a": layer.weight, "b": torch.ones(()), "rate": 0.5}
    torch.save(parameters, tmp_path / "parameters.pth")
    code = (
        "import sys; from pathlib import Path; from hfprep.models.tensor_shapes import read_shapes; "
        "print([read_shapes(Path(name)) for name in sys.argv[1:]], 'torch' in sys.modules)"
    )
    names = [tmp_path / "nested.pth", tmp_path / "parameters.pth"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stdout == "[{'weight': (2, 3), 'bias': (2,)}, {'a': (2, 3), 'b': ()}] False\n"


def test_an_old_torch_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "gpt.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch\.save\(torch\.load\("):
        read_torch_file(tmp_path / "gpt.pth")


def test_files_that_are_no_checkpoints_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "cut.pth").write_bytes((folder / "gpt.pth").read_bytes()[:-5000])
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    for name in ("plain.pth", "cut.pth", "list.pth", "absent.pth"):
        for read in (read_torch_file, read_shapes):
            with pytest.raises(CheckpointError, match=name):
                read(tmp_path / name)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / CODEC_FILE).read_bytes()[:-50])
    for path in (cut, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            read_safetensors([path])


def test_variances_must_be_positive(folder: Path, tmp_path: Path) -> None:
    semantic = folder / "w2v-bert-2.0"
    torch.save({"mean": torch.zeros(32), "var": torch.zeros(32)}, tmp_path / "stats.pt")
    with pytest.raises(CheckpointError, match="var"):
        load_semantic_encoder(semantic / "config.json", [semantic / "model.safetensors"], tmp_path / "stats.pt")


def test_a_file_of_other_tensors_fails_as_a_whole(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    torch.save({"emo_layer.weight": torch.zeros(3, 3)}, tmp_path / "gpt.pth")
    with pytest.raises(CheckpointError) as caught:
        load_conditioners(tmp_path / "gpt.pth", config, semantic_size=32)
    assert "perceiver_encoder.latents [32, 40]" in str(caught.value) or "missing" in str(caught.value)
    assert "emo_layer.weight is [3, 3], not [40, 40]" in str(caught.value)


def test_names_are_translated_here_only() -> None:
    """Published tensor names stand in the modules that translate them, and nowhere else in the package."""
    package = Path(__file__).resolve().parent.parent / "hfprep"
    published_name = re.compile(r"linear_pos|norm_mha|to_kv|pwconv1|w_1\b|emovec_layer|proj_context")
    hits = {path.name for path in package.rglob("*.py") if published_name.search(path.read_text(encoding="utf-8"))}
    assert hits == {"networks.py"}
