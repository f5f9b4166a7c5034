"""Tokenizers held against a manifest, and one extended by what a manifest's language needs."""
