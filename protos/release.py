"""Check the contract against the released image, and renew that image when nothing breaks.

python protos/release.py            check only; exit code 1 names what breaks
python protos/release.py --write    check, then make the present contract the released one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
RELEASED = "released.binpb"
RULES = '{"version":"v2","breaking":{"use":["FILE"],"ignore":["google","buf"]}}'


def buf(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the venv's buf in a folder with a `buf.yaml`, without its update check."""
    program = Path(sysconfig.get_path("scripts")) / "buf"
    environment = {**os.environ, "BUF_CACHE_DIR": str(folder / ".buf-cache")}
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )


def check(folder: Path = ROOT) -> list[str]:
    """Return one line for each change that would break a caller of the released contract."""
    with tempfile.TemporaryDirectory() as scratch:
        present = str(Path(scratch) / "present.binpb")
        write(folder, present)  # buf compares a workspace of two modules only image to image
        done = buf("breaking", present, "--against", RELEASED, "--config", RULES, folder=folder)
    return (done.stdout + done.stderr).splitlines() if done.returncode != 0 else []


def write(folder: Path = ROOT, image: str = RELEASED) -> None:
    """Write the present contract as an image."""
    done = buf("build", "-o", image, folder=folder)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def main() -> int:
    """Run the command; 0 when nothing breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the released image")
    options = parser.parse_args()
    if (ROOT / RELEASED).exists() and (broken := check()):
        print("the contract breaks its callers; v1 may only grow:", *broken, sep="\n  ")
        return 1
    if options.write:
        write()
    print(f"contract is compatible with {RELEASED}" + (", which is renewed" * options.write))
    return 0


if __name__ == "__main__":
    sys.exit(main())
