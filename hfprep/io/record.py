"""The logger for messages that belong in a build's log file and not in the terminal.

While a build runs, it does not propagate to other loggers (see `pipeline.logs`).
"""

import logging

record = logging.getLogger("hfprep.record")
