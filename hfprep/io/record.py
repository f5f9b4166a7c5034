"""The logger of what a build's own log file is to hold, and nobody's terminal.

A build takes it off the others for as long as it runs (see `pipeline.logs`).
"""

import logging

record = logging.getLogger("hfprep.record")
