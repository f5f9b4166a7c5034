"""What `--manifest` may name, each format as the same stream: a number and a row, for `manifest.parse_line`.

`opening.open_source` finds out the format. Heavy libraries are loaded by the module of the format that needs them.
"""
