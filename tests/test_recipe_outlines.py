"""What check, doctor and download ask of a recipe of published models, without any model file."""

from pathlib import Path

import pytest

from hfprep.errors import ConfigError
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import NAMES, downloads, recipe

PUBLISHED = [name for name in NAMES if name != "codec"]  # which has no models until --codec-model names one


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_known_without_their_files(name: str) -> None:
    chosen = recipe(name)
    known = chosen.outline(ModelOptions())
    assert known.schema == chosen.published
    assert known.text_encoder is None
    assert 0 < known.min_frames < (known.max_frames or 0)
    seconds = 10
    frames = known.audio.num_frames(seconds * known.audio.sampling_rate)
    assert known.num_codes(frames) == pytest.approx(seconds * (known.schema.code_rate or 0), abs=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_downloads_name_every_file_once(name: str) -> None:
    sources = downloads(recipe(name))
    files = [Path(source.folder) / file for source in sources for file in source.files]
    assert len(set(files)) == len(files)
    assert Path("config.yaml") in files
    assert Path("w2v-bert-2.0/model.safetensors") in files
    assert all(source.repository.count("/") == 1 for source in sources)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        recipe(name).outline(ModelOptions(models=tmp_path / "none"))


def test_a_codec_has_to_be_named() -> None:
    for ask in (lambda: recipe("codec").outline(ModelOptions()), lambda: downloads(recipe("codec"))):
        with pytest.raises(ConfigError, match="--codec-model"):
            ask()
