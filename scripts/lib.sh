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
# our folder names, processes by our binary.
leftovers() {
    docker ps -a --filter label=buildyard.worker --format 'container {{.Names}}' 2>/dev/null || true
    docker network ls --filter label=buildyard.worker --format 'network {{.Name}}' 2>/dev/null || true
    docker volume ls --filter label=buildyard.worker --format 'volume {{.Name}}' 2>/dev/null || true
    awk '$2 ~ /\/attempts\/att-/ {print "mount " $2}' /proc/mounts
    losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | awk '/\/attempts\/att-/ {print "loop device " $0}' || true
    pgrep -f 'buildyard (serve|up)' 2>/dev/null | sed 's/^/process /' || true
    { iptables-save 2>/dev/null | grep -iE 'byd-|buildyard' | sed 's/^/firewall rule /'; } || true
}
