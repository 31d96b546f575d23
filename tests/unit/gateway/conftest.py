from __future__ import annotations

import sys
from pathlib import Path

# the rig and the story-tellers of this folder, by their plain names
for folder in (Path(__file__).parent, Path(__file__).parent / "xds"):
    sys.path.insert(0, str(folder))
