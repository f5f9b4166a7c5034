"""The options of all recipes together, for the command line: a name that two recipes share is one option."""

from dataclasses import dataclass

from hfprep.recipes.codec.options import CodecOptions
from hfprep.recipes.indextts2.options import IndexTTS2Options
from hfprep.recipes.indextts25.options import IndexTTS25Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(IndexTTS2Options, IndexTTS25Options, CodecOptions):
    """Which model files a build is given."""
