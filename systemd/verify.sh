#!/bin/sh
# Checks the units with systemd-analyze, without installing anything, and prints how exposed each service is.
#
#   systemd/verify.sh [DIRECTORY]      DIRECTORY: where the built binaries are, e.g. target/debug
#
# The units name binaries in /usr/bin. Copies are checked in which each of them is the built one or, if it was not
# built, /bin/true: what is checked is the units. Any message from systemd-analyze is a failure.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=${1:-}
[ -z "$bin" ] || bin=$(cd "$bin" && pwd)
command -v systemd-analyze >/dev/null || { echo "systemd-analyze is missing (Debian package: systemd)" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir "$work/user" "$work/hardened" "$work/system"

copy() { # UNIT DIRECTORY: with ExecStart= pointing at something that exists
    name=$(sed -n 's|^ExecStart=/usr/bin/\([a-z-]*\).*|\1|p' "$here/$1")
    program=/bin/true
    if [ -n "$bin" ] && [ -n "$name" ] && [ -x "$bin/$name" ]; then program=$bin/$name; fi
    sed -e "s|^ExecStart=/usr/bin/[a-z-]*|ExecStart=$program|" -e '/^Documentation=/d' "$here/$1" >"$2/$1"
}

failed=0
analyze() { # what is being checked, then the command
    what=$1; shift
    # XDG_RUNTIME_DIR: the user manager's paths are resolved even when none runs
    if said=$(XDG_RUNTIME_DIR="$work" "$@" 2>&1) && [ -z "$said" ]; then
        echo "ok      $what"
    else
        # before 253 this one type has no name yet, and says so
        said=$(printf '%s\n' "$said" | grep -v 'Failed to parse service type, ignoring: notify-reload' || :)
        if [ -z "$said" ]; then echo "ok      $what (this systemd does not know notify-reload)"
        else failed=1; echo "FAILED  $what"; printf '%s\n' "$said" | sed 's/^/        /'; fi
    fi
}

for unit in chatkeepd.service chatkeep-courier.socket chatkeep-courier.service; do copy "$unit" "$work/user"; done
copy chatkeepd.service "$work/hardened"
mkdir "$work/hardened/chatkeepd.service.d"
cp "$here/hardening.conf" "$work/hardened/chatkeepd.service.d/"
copy chatkeep-vault.service "$work/system"
mkdir "$work/tpm2" "$work/tpm2/chatkeep-vault.service.d"
copy chatkeep-vault.service "$work/tpm2"
cp "$here/chatkeep-vault-tpm2.conf" "$work/tpm2/chatkeep-vault.service.d/tpm2.conf"

cd "$work/user"
for unit in *; do analyze "$unit" systemd-analyze --user verify "./$unit"; done
cd "$work/hardened"
analyze "chatkeepd.service with hardening.conf" systemd-analyze --user verify ./chatkeepd.service
cd "$work/system"
analyze chatkeep-vault.service systemd-analyze verify ./chatkeep-vault.service
cd "$work/tpm2"
analyze "chatkeep-vault.service with chatkeep-vault-tpm2.conf" systemd-analyze verify ./chatkeep-vault.service

# the activation file must name this unit, and the unit the same bus name
name=$(sed -n 's/^BusName=//p' "$here/chatkeepd.service")
if grep -qx "Name=$name" "$here/$name.service" && grep -qx 'SystemdService=chatkeepd.service' "$here/$name.service"
then echo "ok      $name.service"
else failed=1; echo "FAILED  $name.service does not fit chatkeepd.service"; fi

score() { # UNIT: 0 is locked up, 10 is open
    systemd-analyze security --offline=true --no-pager "$1" 2>/dev/null | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p'
}
sed "/^\[Service\]/d" "$here/hardening.conf" >"$work/more"
sed "/^\[Service\]/r $work/more" "$work/user/chatkeepd.service" >"$work/hardened.service"
# appended, because the last word counts, as with a drop-in
sed "/^\[Install\]/,\$d" "$work/system/chatkeep-vault.service" >"$work/tpm2.service"
sed "/^\[Service\]/d" "$here/chatkeep-vault-tpm2.conf" >>"$work/tpm2.service"
vault=$(score "$work/system/chatkeep-vault.service")
echo "exposure: chatkeepd $(score "$work/user/chatkeepd.service"), with hardening.conf $(score "$work/hardened.service")," \
    "courier $(score "$work/user/chatkeep-courier.service"), vault $vault, with a TPM $(score "$work/tpm2.service")"
# strangers reach the vault: what is given to it is a decision, not an oversight
if awk "BEGIN { exit !(\"$vault\" != \"\" && $vault + 0 < 2) }"
then echo "ok      chatkeep-vault.service is exposed below 2"
else failed=1; echo "FAILED  chatkeep-vault.service is exposed at $vault; it must be below 2"; fi
exit "$failed"
