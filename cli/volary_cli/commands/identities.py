"""`volary keys DIR`: key pairs of a mesh that nobody launches for you."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volary_cli.commands.output import AsJson, console, print_json


def keys(
    folder: Annotated[Path, typer.Argument(help="Where keys/ and jwks.json go.", metavar="DIR")],
    as_json: AsJson = False,
) -> None:
    """Make a key pair for each service and one jwks.json; what is there stays.

    `volary up` does this by itself; containers run it once into a shared volume.
    """
    from volary_cli.launcher.folder import MeshFolder
    from volary_cli.launcher.identities import Identities
    from volary_cli.launcher.services import identity_names

    mesh = MeshFolder(folder.absolute())
    mesh.make()
    names = Identities(mesh).make(identity_names())
    if as_json:
        print_json({"jwks": str(mesh.jwks), "keys": names})
    else:
        console.print(f"{len(names)} key pairs in {mesh.keys}, public halves in {mesh.jwks}")
