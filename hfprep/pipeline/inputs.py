"""The model files of a build: found, checked and identified, not yet loaded.

Takes a BuildConfig; gives `Inputs`, from which the settings that numbers depend on follow. Reads no weights. Imports
nothing heavy, so that `hashing_ahead` can begin before the packages of a build are imported.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError, HfprepError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io.file_hashes import FileHashes, FileIdentity, Hashers
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.locate import ModelFiles, locate
from hfprep.store.fingerprints import Settings, digest
from hfprep.store.layout import NpyOutput
from hfprep.store.remote import open_output


@dataclass(frozen=True)
class Inputs:
    """The models of a build, found and identified, not yet loaded; `seen` are the files as they were before hashing."""

    files: ModelFiles
    model_config: ModelConfig
    tokenizer: TextTokenizer
    sha256: dict[str, str]
    seen: dict[Path, FileIdentity]

    def settings(self, config: BuildConfig) -> Settings:
        """What the numbers depend on besides rows and audio."""
        sha256, model = self.sha256, self.model_config
        semantic = {name: value for name, value in sha256.items() if name.startswith(("semantic_model", "w2v_stat"))}
        semantic |= {"audio_sr": str(config.audio_sr), "precision": config.precision}
        architecture = (
            digest(dataclasses.asdict(model.condition)).hex() + digest(dataclasses.asdict(model.emotion)).hex()
        )
        return Settings(
            text={"tokenizer": sha256["tokenizer"], "normalizer": self.tokenizer.normalizer.fingerprint()},
            codes=semantic | {"semantic_codec": sha256["semantic_codec"]},
            latents=semantic | {"gpt_checkpoint": sha256["gpt_checkpoint"], "conditioners": architecture},
        )


def _named_files(files: ModelFiles, tokenizer: Path) -> dict[str, Path]:
    """Every file whose content the numbers depend on, under the name that stats.json gives it."""
    return {
        "tokenizer": tokenizer,
        "config": files.config,
        "gpt_checkpoint": files.gpt_checkpoint,
        "w2v_stat": files.w2v_stat,
        "semantic_codec": files.semantic_codec,
        "semantic_model/config.json": files.semantic_config,
    } | {f"semantic_model/{path.name}": path for path in files.semantic_weights}


def _model_files(config: BuildConfig, *, fetch: bool = True) -> ModelFiles:
    return locate(
        models=config.models,
        config=config.config,
        gpt_checkpoint=config.gpt_checkpoint,
        semantic_model=config.semantic_model,
        semantic_codec=config.semantic_codec,
        fetch=fetch,
    )


def _remembered(output: NpyOutput, hashers: Hashers) -> FileHashes:
    return FileHashes(output.private / "sha256.json", hashers)


@contextlib.contextmanager
def hashing_ahead(config: BuildConfig) -> Iterator[Hashers]:
    """Meanwhile hash the model files that are on this machine and new to the output; for `find_inputs`.

    What is missing or wrong is left for it to say.
    """
    with Hashers() as hashers:
        with contextlib.suppress(HfprepError):
            named = _named_files(_model_files(config, fetch=False), config.tokenizer_path)
            _remembered(open_output(config.output_dir, config.work_dir), hashers).begin(named.values())
        yield hashers


def find_inputs(config: BuildConfig, output: NpyOutput, hashers: Hashers | None = None) -> Inputs:
    """Find and check everything but the weights themselves; `hashers` may have begun to hash them.

    Raises ConfigError and CheckpointError.
    """
    from hfprep.models.input_features import check_preprocessor  # it imports torch

    files = _model_files(config)
    tokenizer_path = config.tokenizer_path
    named = _named_files(files, tokenizer_path)
    seen = {path: FileIdentity.of(path) for path in named.values()}
    model_config = ModelConfig.read(files.config)
    check_preprocessor(files.preprocessor_config)
    tokenizer = TextTokenizer(tokenizer_path)
    if tokenizer.vocab_size > model_config.number_text_tokens:
        raise ConfigError(
            f"--tokenizer {str(tokenizer_path)!r} has {tokenizer.vocab_size} tokens, but the checkpoint has only "
            f"{model_config.number_text_tokens} (gpt.number_text_tokens in {model_config.path}); use the tokenizer it "
            "was trained with, or extend the checkpoint first"
        )
    with contextlib.ExitStack() as stack:
        hashes = _remembered(output, hashers or stack.enter_context(Hashers()))
        return Inputs(files, model_config, tokenizer, hashes.sha256(named), seen)
