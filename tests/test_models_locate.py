"""Finding the model files: folders, single paths, the hub's cache, and what is said when something is missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from hfprep.errors import CheckpointError, ConfigError
from hfprep.recipes.finding import ModelFiles
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions

MODEL = "facebook/w2v-bert-2.0"
CODEC = "amphion/MaskGCT"


@pytest.fixture
def models(golden_small: Path, tmp_path: Path) -> Path:
    """A models folder of one's own."""
    folder = tmp_path / "models"
    shutil.copytree(golden_small / "checkpoints", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that is offline; any way to the network is an error."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[dict[str, Any]]:
    """A hub that is online as far as the library knows; every request that would leave is kept, and fails."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    requests: list[dict[str, Any]] = []
    cached_only = huggingface_hub.snapshot_download

    def snapshot_download(repository: str, **options: Any) -> str:
        if options.get("local_files_only"):
            found: str = cached_only(repository, **options)
            return found
        requests.append({"repository": repository, **options})
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def put_in_cache(cache: Path, repository: str, files: dict[str, Path]) -> Path:
    """Files in the layout of the hub's cache: blobs, a snapshot that links to them, and the ref to it."""
    root = cache / f"models--{repository.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = root / "snapshots" / revision
    for index, (name, source) in enumerate(files.items()):
        blob = root / "blobs" / f"{index:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs/main").write_text(revision)
    return snapshot


def semantic_files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in (folder / "w2v-bert-2.0").iterdir()}


def test_a_models_folder_gives_everything(models: Path) -> None:
    files = locate(ModelOptions(models=models))
    assert files == ModelFiles(
        config=models / "config.yaml",
        gpt_checkpoint=models / "gpt.pth",
        w2v_stat=models / "wav2vec2bert_stats.pt",
        semantic_model=models / "w2v-bert-2.0",
        semantic_weights=(models / "w2v-bert-2.0/model.safetensors",),
        semantic_codec=models / "semantic_codec/model.safetensors",
    )


def test_the_config_names_the_checkpoint_and_the_statistics(models: Path) -> None:
    text = (models / "config.yaml").read_text()
    text = text.replace("gpt_checkpoint: gpt.pth", "gpt_checkpoint: mine.pth").replace("wav2vec2bert_stats.pt", "s.pt")
    (models / "config.yaml").write_text(text)
    (models / "gpt.pth").rename(models / "mine.pth")
    (models / "wav2vec2bert_stats.pt").rename(models / "s.pt")
    files = locate(ModelOptions(models=models))
    assert (files.gpt_checkpoint.name, files.w2v_stat.name) == ("mine.pth", "s.pt")


def test_each_path_takes_the_place_of_the_folders(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models, other)
    files = locate(
        ModelOptions(
            models=models,
            gpt_checkpoint=other / "gpt.pth",
            semantic_model=str(other / "w2v-bert-2.0"),
            semantic_codec=str(other / "semantic_codec/model.safetensors"),
        )
    )
    assert files.config.parent == models
    assert files.gpt_checkpoint.parent == files.semantic_model.parent == other
    assert files.semantic_codec == other / "semantic_codec/model.safetensors"
    assert (
        locate(ModelOptions(models=models, semantic_codec=str(other))).semantic_codec
        == other / "semantic_codec/model.safetensors"
    )


def test_single_paths_are_enough(models: Path) -> None:
    files = locate(
        ModelOptions(
            config=models / "config.yaml",
            gpt_checkpoint=models / "gpt.pth",
            semantic_model=str(models / "w2v-bert-2.0"),
            semantic_codec=str(models / "semantic_codec/model.safetensors"),
        )
    )
    assert files == locate(ModelOptions(models=models))


def test_options_that_are_not_given_are_named(models: Path) -> None:
    with pytest.raises(ConfigError, match="--config is not given"):
        locate(ModelOptions())
    with pytest.raises(ConfigError, match="--gpt-checkpoint is not given"):
        locate(ModelOptions(config=models / "config.yaml"))
    with pytest.raises(ConfigError, match=r"--models .*absent: the folder does not exist"):
        locate(ModelOptions(models=models / "absent"))


def test_everything_that_is_missing_is_listed_at_once(models: Path, cache: Path) -> None:
    (models / "gpt.pth").unlink()
    (models / "wav2vec2bert_stats.pt").unlink()
    shutil.rmtree(models / "w2v-bert-2.0")
    shutil.rmtree(models / "semantic_codec")
    with pytest.raises(CheckpointError) as caught:
        locate(ModelOptions(models=models))
    message = str(caught.value)
    assert str(models / "gpt.pth") in message
    assert str(models / "wav2vec2bert_stats.pt") in message
    assert f"hf download {MODEL} config.json preprocessor_config.json model.safetensors" in message
    assert f"hf download {CODEC} semantic_codec/model.safetensors" in message
    assert "offline" in message


def test_an_incomplete_semantic_folder_is_not_replaced_by_the_hub(models: Path, cache: Path) -> None:
    (models / "w2v-bert-2.0/model.safetensors").unlink()
    (models / "w2v-bert-2.0/preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        locate(ModelOptions(models=models))
    assert str(models / "w2v-bert-2.0/model.safetensors") in str(caught.value)
    assert str(models / "w2v-bert-2.0/preprocessor_config.json") in str(caught.value)


def test_the_cache_is_used_without_the_network(models: Path, cache: Path, downloads: list[dict[str, Any]]) -> None:
    semantic = put_in_cache(cache, MODEL, semantic_files(models))
    codec = put_in_cache(
        cache, CODEC, {"semantic_codec/model.safetensors": models / "semantic_codec/model.safetensors"}
    )
    shutil.rmtree(models / "w2v-bert-2.0")
    shutil.rmtree(models / "semantic_codec")
    files = locate(ModelOptions(models=models))
    assert files.semantic_model == semantic
    assert files.semantic_weights == (semantic / "model.safetensors",)
    assert files.semantic_codec == codec / "semantic_codec/model.safetensors"
    assert downloads == []


def test_other_hub_ids_can_be_given(models: Path, cache: Path) -> None:
    semantic = put_in_cache(cache, "me/my-w2v", semantic_files(models))
    assert locate(ModelOptions(models=models, semantic_model="me/my-w2v")).semantic_model == semantic


def test_what_is_not_cached_is_fetched_and_only_that(
    models: Path, downloads: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = tmp_path / "fetched"
    shutil.copytree(models / "w2v-bert-2.0", fetched)
    shutil.rmtree(models / "w2v-bert-2.0")
    only_cached = huggingface_hub.snapshot_download

    def snapshot_download(repository: str, **options: Any) -> str:
        try:
            return only_cached(repository, **options)
        except ConnectionError:
            return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate(ModelOptions(models=models)).semantic_model == fetched
    assert [request["repository"] for request in downloads] == [MODEL]
    assert set(downloads[0]["allow_patterns"]) == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*.safetensors",
    }


def test_no_network_is_said_with_the_command(models: Path, downloads: list[dict[str, Any]]) -> None:
    shutil.rmtree(models / "semantic_codec")
    with pytest.raises(CheckpointError, match=f"no route to the hub.*hf download {CODEC} semantic_codec/model"):
        locate(ModelOptions(models=models))
    assert [request["allow_patterns"] for request in downloads] == [["semantic_codec/model.safetensors"]]


def test_without_fetching_the_hub_is_not_asked(models: Path, downloads: list[dict[str, Any]]) -> None:
    shutil.rmtree(models / "semantic_codec")
    with pytest.raises(CheckpointError, match=f"the hub was not asked.*hf download {CODEC} semantic_codec/model"):
        locate(ModelOptions(models=models), fetch=False)
    assert downloads == []


def test_an_incomplete_cache_is_not_taken_for_the_model(models: Path, cache: Path) -> None:
    shutil.rmtree(models / "semantic_codec")
    files = {name: path for name, path in semantic_files(models).items() if name != "model.safetensors"}
    put_in_cache(cache, "me/half", files)
    with pytest.raises(CheckpointError, match=r"hf download me/half config\.json"):
        locate(ModelOptions(models=models, semantic_model="me/half"))


@pytest.mark.parametrize("value", ["absent/folder/deep", "./me/my-w2v", "/absent", "~/w2v"])
def test_a_path_that_is_not_there_is_no_hub_id(models: Path, downloads: list[dict[str, Any]], value: str) -> None:
    with pytest.raises(CheckpointError, match="--semantic-model"):
        locate(ModelOptions(models=models, semantic_model=value))
    with pytest.raises(CheckpointError, match="--semantic-codec"):
        locate(ModelOptions(models=models, semantic_codec=value))
    assert downloads == []


def split_weights(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_found_by_their_index(models: Path) -> None:
    folder = models / "w2v-bert-2.0"
    split_weights(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"})
    (folder / "model-1.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        locate(ModelOptions(models=models))
    (folder / "model-2.safetensors").touch()
    assert [path.name for path in locate(ModelOptions(models=models)).semantic_weights] == [
        "model-1.safetensors",
        "model-2.safetensors",
    ]


def test_an_index_cannot_point_outside(models: Path) -> None:
    split_weights(models / "w2v-bert-2.0", {"a": "../gpt.pth"})
    with pytest.raises(CheckpointError, match="outside"):
        locate(ModelOptions(models=models))
    (models / "w2v-bert-2.0/model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="index"):
        locate(ModelOptions(models=models))


def test_finding_files_needs_no_torch(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hfprep.recipes.indextts2.recipe import locate; "
        "from hfprep.recipes.options import ModelOptions; "
        "locate(ModelOptions(models=Path(sys.argv[1]))); "
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, models], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
