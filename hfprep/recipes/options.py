"""The options of all recipes, for the command line. Recipes may share an option by using the same name."""

from dataclasses import dataclass

from hfprep.recipes.codec.options import CodecOptions
from hfprep.recipes.indextts2.options import IndexTTS2Options
from hfprep.recipes.indextts25.options import IndexTTS25Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(IndexTTS2Options, IndexTTS25Options, CodecOptions):
    """The model files of a build."""
