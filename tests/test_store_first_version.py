"""The schema of outputs that name none: data, which must stay what the recipe of hfprep 0.1.0 says."""

from pathlib import Path

from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.schema import schema_of
from hfprep.store.first_version import first_schema, width_column

PUBLISHED = """
gpt:
  model_dim: {width}
  max_mel_tokens: 1815
  max_text_tokens: 600
  number_text_tokens: 12000
  condition_type: conformer_perceiver
  condition_module: &branch
    {{output_size: 512, linear_units: 2048, attention_heads: 8, num_blocks: 6, input_layer: conv2d2, perceiver_mult: 2}}
  emo_condition_module: *branch
semantic_codec:
  {{codebook_size: 8192, hidden_size: 1024, codebook_dim: 8, vocos_dim: 384, vocos_intermediate_dim: 2048,
   vocos_num_layers: 12}}
w2v_stat: wav2vec2bert_stats.pt
"""


def test_the_first_schema_is_that_of_the_published_models(tmp_path: Path) -> None:
    for width in (1280, 40):
        config = tmp_path / "config.yaml"
        config.write_text(PUBLISHED.format(width=width), encoding="utf-8")
        assert first_schema(width) == schema_of(ModelConfig.read(config))


def test_the_width_is_that_of_a_column_with_one_dimension() -> None:
    assert first_schema(7).by_name[width_column()].dims == (7,)
