"""What the server that forks a sweep's runs imports before it forks any, Avalanche included, which a run imports late."""

from __future__ import annotations

from smope.session import import_avalanche

import_avalanche()
