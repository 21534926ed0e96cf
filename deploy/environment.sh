#!/bin/sh
# Makes .venv from a requirements lock with hashes: deploy/environment.sh run|dev
#
# A stamp named after the lock's digest says that the environment is complete, so that later calls cost nothing. An
# environment whose making was interrupted, or whose Python is gone, is made anew.
set -eu

kind=$1
cd "$(dirname "$0")/.."
environment=.venv
lock=requirements/$kind.txt
unfinished=$environment/.unfinished

digest() { sha256sum "requirements/$1.txt" | cut -c1-16; }
stamp() { echo "$environment/.complete-$1-$(digest "$1")"; }

# The tests scan for viruses with the real daemon; no wheel has it.
missing_daemon() { [ "$kind" = dev ] && ! PATH="$PATH:/usr/sbin:/sbin" command -v clamd >/dev/null; }
complete() { [ -e "$(stamp "$kind")" ] && [ ! -e "$unfinished" ] && [ -x $environment/bin/python ] && ! missing_daemon; }

if complete; then exit 0; fi

say() { echo "environment: $*" >&2; }

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }
makes_environments() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

install_packages() {
    say "installing $*"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

find_python() {
    lacking=
    for candidate in ${PYTHON:-} python3.11 python3 /usr/bin/python3.11 /usr/local/bin/python3.11; do
        fits "$candidate" || continue
        if makes_environments "$candidate"; then
            python=$candidate
            return
        fi
        lacking=$candidate
    done
    if [ -z "$lacking" ]; then
        say "Python 3.11 was not found; install it (Debian: apt-get install python3.11 python3.11-venv) or set PYTHON=/path/to/python3.11"
        exit 1
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "$lacking can't make environments; install its venv module (Debian: apt-get install python3.11-venv)"
        exit 1
    fi
    install_packages python3.11-venv
    python=$lacking
}

# Two makes at once: one works, the other waits. The lock is on the folder itself and goes with the process.
mkdir -p $environment
exec 9<$environment
if command -v flock >/dev/null; then flock 9; fi
if complete; then exit 0; fi

if missing_daemon; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "the tests want clamd; install it (Debian: apt-get install clamav-daemon)"
        exit 1
    fi
    install_packages clamav-daemon
fi

if [ -e "$unfinished" ] || ! fits $environment/bin/python || ! $environment/bin/python -m pip --version >/dev/null 2>&1; then
    find_python
    say "making $environment with $("$python" --version)"
    find $environment -mindepth 1 -delete
    : >"$unfinished"
    "$python" -m venv $environment
fi
: >"$unfinished"
rm -f $environment/.complete-"$kind"-*
say "installing $(grep -c '^[a-zA-Z0-9]' "$lock") packages of $lock"
$environment/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r "$lock"
: >"$(stamp "$kind")"
if [ "$kind" = dev ]; then : >"$(stamp run)"; fi # the development lock holds all of the other, at the same versions
rm -f "$unfinished"
