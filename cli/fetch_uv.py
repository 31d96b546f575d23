"""Fetch the uv wheel without pip: `python fetch_uv.py VERSION SHA256 FOLDER`.

For machines whose Python has neither pip nor ensurepip. Standard library only, any Python 3.8+.
The index is the one that pip is configured for (PIP_INDEX_URL, else pip.conf), by default PyPI.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import io
import os
import ssl
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PUBLIC_INDEX = "https://pypi.org/simple"
PLATFORM = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"
TIMEOUT_S = 60.0
CHUNK = 1 << 20


class Links(HTMLParser):
    """The targets of a simple index page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the target of an anchor."""
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def pip_files() -> Iterator[Path]:
    """Yield pip's configuration files, the strongest first."""
    if os.environ.get("PIP_CONFIG_FILE"):
        yield Path(os.environ["PIP_CONFIG_FILE"])
    home = Path.home()
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    yield home / ".pip" / "pip.conf"
    yield Path("/etc/pip.conf")


def pip_option(variable: str, option: str) -> str | None:
    """Return what pip is configured with, by environment or file."""
    if os.environ.get(variable):
        return os.environ[variable]
    for path in pip_files():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path)
        if parser.has_option("global", option):
            return parser.get("global", option)
    return None


def certificates() -> ssl.SSLContext:
    """Return the trusted roots: pip's, else the environment's, else the system's."""
    bundle = pip_option("PIP_CERT", "cert") or os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=bundle)


def read(url: str, context: ssl.SSLContext, label: str = "") -> bytes:
    """Return what a URL answers; with a label, say how far it is."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http"):
        raise SystemExit(f"volary: {url} is no http address")
    headers = {"user-agent": "volary-setup"}
    if parts.username:
        pair = (
            f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        )
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - scheme checked above
    kept = io.BytesIO()
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as reply:  # noqa: S310
        total = int(reply.headers.get("content-length") or 0)
        while chunk := reply.read(CHUNK):
            kept.write(chunk)
            if label and sys.stderr.isatty():
                sys.stderr.write(f"\r{label}: {kept.tell() >> 20} of {total >> 20} MB")
    if label and sys.stderr.isatty():
        sys.stderr.write("\n")
    return kept.getvalue()


def wheel_url(version: str, context: ssl.SSLContext) -> str:
    """Return where the index has the wheel of this platform."""
    index = pip_option("PIP_INDEX_URL", "index-url") or PUBLIC_INDEX
    page = index.rstrip("/") + "/uv/"
    links = Links()
    links.feed(read(page, context).decode())
    name = f"uv-{version}-{PLATFORM}.whl"
    for target in links.targets:
        url = urllib.parse.urldefrag(urllib.parse.urljoin(page, target)).url
        if url.rsplit("/", 1)[-1] == name:
            return url
    raise SystemExit(f"volary: {page.rpartition('@')[2]} has no {name}")


def main(version: str, sha256: str, folder: Path) -> None:
    """Fetch the wheel, check it, unpack its executable."""
    context = certificates()
    wheel = read(wheel_url(version, context), context, f"uv {version}")
    if hashlib.sha256(wheel).hexdigest() != sha256:
        raise SystemExit(f"volary: the wheel of uv {version} is not the one that was expected")
    target = folder / "bin" / "uv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        target.write_bytes(archive.read(f"uv-{version}.data/scripts/uv"))
    target.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
