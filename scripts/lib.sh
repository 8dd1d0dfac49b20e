#!/usr/bin/env bash
# Words shared by the scripts. Sourced, never run.
set -euo pipefail

# The C toolchain that the demo and the examples build in. Made here where no registry answers.
TOOLCHAIN_IMAGE=${TOOLCHAIN_IMAGE:-c-toolchain:12}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' green='' red='' plain=''
fi

step() { printf '%s==>%s %s\n' "$bold" "$plain" "$*"; }
ok() { printf '%s ok%s  %s\n' "$green" "$plain" "$*"; }
skipped() { printf ' --  skipped: %s\n' "$*"; }
missing() { printf '%s --%s  %s\n' "$red" "$plain" "$*"; found_missing=$((${found_missing:-0} + 1)); }
fail() { printf '%sfailed:%s %s\n' "$red" "$plain" "$*" >&2; exit 1; }

as_root_or_fail() { [ "$(id -u)" -eq 0 ] || fail "$1 needs root; run this with sudo"; }

docker_works() { command -v docker >/dev/null 2>&1 && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# wait_for SECONDS COMMAND…: until the command succeeds, or the seconds are over.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

# What this farm could leave behind, one line each. Containers and networks by our labels, mounts and loop devices by
# our folder names, processes by our binary. Fails where something cannot be looked at: nothing seen is not nothing left.
leftovers() {
    # A client alone does not make a host with an engine.
    if command -v dockerd >/dev/null 2>&1 || [ -S /var/run/docker.sock ]; then
        docker_works || fail "the container engine does not answer, so nobody can say what is left in it"
        docker ps -a --filter label=buildyard.worker --format 'container {{.Names}}' || fail "cannot list containers"
        docker network ls --filter label=buildyard.worker --format 'network {{.Name}}' || fail "cannot list networks"
        docker volume ls --filter label=buildyard.worker --format 'volume {{.Name}}' || fail "cannot list volumes"
    fi
    awk '$2 ~ /\/attempts\/att-/ {print "mount " $2}' /proc/mounts
    if command -v losetup >/dev/null 2>&1; then
        losetup --list --noheadings --output NAME,BACK-FILE | awk '/\/attempts\/att-/ {print "loop device " $0}' ||
            fail "cannot list loop devices"
    fi
    # Finding none is no error, but pgrep says so with 1.
    { pgrep -f 'buildyard (serve|up)' || [ $? -eq 1 ]; } | sed 's/^/process /' || fail "cannot list processes"
    if [ "$(id -u)" -eq 0 ] && command -v iptables-save >/dev/null 2>&1; then
        # It warns on every host where both of its kinds of tables are in use.
        iptables-save 2>/dev/null | { grep -iE 'byd-|buildyard' || [ $? -eq 1 ]; } | sed 's/^/firewall rule /' ||
            fail "cannot list firewall rules"
    fi
}
