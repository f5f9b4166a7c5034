"""Compares tokenizers on a manifest's texts, and extends a tokenizer for a manifest's language."""
