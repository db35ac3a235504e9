"""What the server that forks a sweep's runs imports before the first: all that a run does,
Avalanche included.
"""

from __future__ import annotations

from smope.run.train import import_avalanche

import_avalanche()
