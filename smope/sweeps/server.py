"""What the server that forks a sweep's runs imports first: all that a run needs, with Avalanche."""

from __future__ import annotations

from smope.run.train import import_avalanche

import_avalanche()
