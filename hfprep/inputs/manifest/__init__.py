"""The formats of `--manifest`, each read as the same stream of (number, row), for `rows.parse_line`.

`opening.open_source` detects the format. Heavy libraries are imported only by the formats that need them.
"""
