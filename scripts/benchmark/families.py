"""The model families that can be measured, and what a comparison needs from each.

Provides `FAMILIES`, by recipe name (`config.RECIPES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfprep.models.configs import SemanticEncoderConfig
from hfprep.recipes.finding import SEMANTIC_FOLDER
from hfprep.tools.demo.model_set import make_model_set
from hfprep.tools.demo.model_set25 import SPEAKER, make_model_set25
from scripts.benchmark import arithmetic
from scripts.benchmark.arithmetic import Flops
from scripts.benchmark.config import RECIPES

if TYPE_CHECKING:
    import torch

    from scripts.benchmark.baseline import Baseline

Needed = Callable[[int], dict[str, Flops]]
Place = tuple[Any, str]  # an attribute of a module or class


@dataclass(frozen=True, kw_only=True)
class Places:
    """The functions of a build's steps, which are patched to time them.

    `networks` are attributes of `model`. `features` are the functions that compute the networks' input, in the loading
    threads or on the models' device; `beside` are those that loading threads always call.
    """

    model: Any
    networks: dict[str, str]
    text: Place
    beside: tuple[Place, ...] = ()
    features: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: its stages, random models, needed operations, baseline, and the functions to time.

    `make_models(folder, size=...)` returns the folder; `needed(models, size)` a function from the number of samples of
    a clip at 16 kHz to its operations by stage.
    """

    stages: tuple[str, ...]
    make_models: Callable[..., Path]
    needed: Callable[[Path, str], Needed]
    baseline: Callable[[Path, torch.device], Baseline]
    places: Callable[[], Places]


def _semantic(models: Path) -> SemanticEncoderConfig:
    return SemanticEncoderConfig.read(models / SEMANTIC_FOLDER / "config.json")


def _needed(models: Path, _: str) -> Needed:
    from hfprep.recipes.indextts2.config import ModelConfig

    config, semantic = ModelConfig.read(models / "config.yaml"), _semantic(models)
    return lambda num_samples: arithmetic.needed_flops(num_samples, config, semantic)


def _needed25(models: Path, size: str) -> Needed:
    from hfprep.recipes.indextts25.config import Config

    config, semantic = Config.read(models / "config.yaml"), _semantic(models)
    return lambda num_samples: arithmetic.needed_flops25(num_samples, config, semantic, SPEAKER[size])


def _baseline(models: Path, device: torch.device) -> Baseline:
    from scripts.benchmark.baseline import baseline  # imports transformers

    return baseline(models, device)


def _baseline25(models: Path, device: torch.device) -> Baseline:
    from scripts.benchmark.baseline import baseline25

    return baseline25(models, device)


def _places() -> Places:
    from hfprep.inputs.text.tokenizer import TextTokenizer
    from hfprep.models import batch_input_features
    from hfprep.recipes import indextts
    from hfprep.recipes.indextts2.feature_model import FeatureModel

    return Places(
        model=FeatureModel,
        networks={
            "semantic_encoder": "semantic encoder",
            "semantic_codec": "codec",
            "conditioner": "conditioners",
            "emotion_conditioner": "conditioners",
        },
        text=(TextTokenizer, "encode"),
        beside=((indextts, "extract_input_features"),),
        features=((batch_input_features, "batch_input_features"),),
    )


def _places25() -> Places:
    from hfprep.recipes.indextts25 import feature_model
    from hfprep.recipes.indextts25.text import TextEncoder

    functions = ("extract_input_features", "batch_input_features", "batch_fbank")
    return Places(
        model=feature_model.FeatureModel,
        networks={"semantic_encoder": "semantic encoder", "codec": "codec", "speaker": "speaker", "emotion": "emotion"},
        text=(TextEncoder, "encode"),
        features=tuple((feature_model, name) for name in functions),
    )


INDEXTTS2 = Family(
    stages=arithmetic.STAGES, make_models=make_model_set, needed=_needed, baseline=_baseline, places=_places
)
INDEXTTS25 = Family(
    stages=arithmetic.STAGES25, make_models=make_model_set25, needed=_needed25, baseline=_baseline25, places=_places25
)
FAMILIES = dict(zip(RECIPES, (INDEXTTS2, INDEXTTS25), strict=True))
