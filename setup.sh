#!/usr/bin/env bash
# Installs everything tgdd_plugin needs: a few Debian packages if they are missing, the rest into .venv.
# `make setup` runs this; it is safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PYTHON=${PYTHON:-python3}
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# An environment that is already there is completed, not replaced.
fresh=yes
if .venv/bin/python -m pip --version >/dev/null 2>&1; then
    PYTHON=.venv/bin/python fresh=no
fi

# --- Python -------------------------------------------------------------------------------------
pick="run: make setup PYTHON=/path/to/python3"
[[ $fresh == yes ]] || pick="remove .venv and $pick"
command -v "$PYTHON" >/dev/null || die "no $PYTHON here; install Python 3.10 to 3.13, or $pick"
read -r version prefix < <("$PYTHON" -c 'import sys
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], getattr(sys, "base_prefix", "")))') ||
    die "$PYTHON does not run"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "Python 3.10 or newer is needed and $PYTHON is $version; install one, then $pick"
# The newest torch that Composer takes (2.7.0, see constraints.txt) is built for Python up to 3.13.
"$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' ||
    die "$PYTHON is $version, and the torch that Composer needs has no build for it; install 3.10 to 3.13, then $pick"

# --- What FFCV's C++ extension is built with ----------------------------------------------------
need=()
command -v "${CXX:-g++}" >/dev/null || need+=(g++)
command -v pkg-config >/dev/null || need+=(pkg-config)
pkg-config --exists opencv4 2>/dev/null || need+=(libopencv-dev)
pkg-config --exists libturbojpeg 2>/dev/null || need+=(libturbojpeg0-dev)
# Debian splits these two off its own Python; for any other Python apt has no remedy.
own=()
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || own+=("python$version-venv")
"$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null ||
    own+=("python$version-dev")
if ((${#own[@]})); then
    [[ $prefix == /usr ]] || die "$PYTHON ($prefix) lacks venv, ensurepip or Python.h; install a complete Python, then $pick"
    need+=("${own[@]}")
fi

if ((${#need[@]})); then
    byhand="apt-get install --no-install-recommends ${need[*]}"
    command -v apt-get >/dev/null || die "no apt-get here; install by hand what Debian calls: ${need[*]}"
    root=()
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die "neither root nor sudo here; as root run: $byhand"
        root=(sudo)
        [[ -t 0 ]] || root+=(-n) # nobody there to type a password
        "${root[@]}" true 2>/dev/null || die "sudo was refused; as root run: $byhand"
    fi
    root+=(env DEBIAN_FRONTEND=noninteractive)
    say "installing Debian packages: ${need[*]}"
    "${root[@]}" apt-get update -qq </dev/null >/dev/null || say "apt-get update failed; trying with the old lists"
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}" </dev/null >/dev/null ||
        die "apt-get failed; as root run: $byhand"
fi

# --- Python packages ----------------------------------------------------------------------------
if [[ $fresh == yes ]]; then
    # The second test finds the remains of an older .venv, whose Python has since gone.
    { "$PYTHON" -m venv .venv && .venv/bin/python -m pip --version >/dev/null; } ||
        die "$PYTHON could not make a working .venv; remove what is left of it and run this again"
fi
say "Python $version, installing into .venv: PyTorch with CUDA and the rest, about 5 GB, 1 minute or more ..."
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@" </dev/null; }
packages=(-q -c constraints.txt -e '.[dev]')
by_uv() { # takes a third of pip's time, but does not read pip's settings, which may name another index
    ! pip config list 2>/dev/null | grep -Eq "[.](index-url|no-index)=" &&
        pip install -q -c constraints.txt uv &&
        .venv/bin/python -m uv pip install --python .venv/bin/python --compile-bytecode "${packages[@]}" </dev/null
}
by_uv || pip install "${packages[@]}" ||
    die "the packages could not be installed (the reason is above); run this again to take it up"
say "done after $SECONDS seconds"
