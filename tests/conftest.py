"""Settings of every test: Hypothesis without deadlines (two cores are shared), and the same examples each time under CI."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("vicugna", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("vicugna")
