# shellcheck shell=bash
# What both GlusterFS scripts need: names that are names, and whether a host answers.
# To be sourced by a script that has set `program` and `scripts`. Never touches /etc/hosts: names are the operator's
# business.

scripts=${scripts:?is the folder of this file}
# shellcheck source=scripts/machine.sh
. "$scripts/machine.sh"

# Where glusterd listens on every host.
glusterd_port=24007

misused() {
    echo "$program: $*; see $program --help" >&2
    exit 2
}

has_systemd() {
    [ -d /run/systemd/system ]
}

# A volume is one path component of gluster's own; a host is a name or an address.
check_volume_name() {
    [[ $1 =~ ^[A-Za-z0-9_][A-Za-z0-9_-]*$ ]] || misused "\"$1\" is not a volume name: letters, digits, - and _"
}

check_host_name() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9.-]*$ ]] || misused "\"$1\" is not a host name or IPv4 address"
    getent ahosts "$1" >/dev/null || fail "$1 has no address here; hint: give it a name in DNS, or name it by address"
}

# Whether glusterd listens on host $1.
glusterd_answers() {
    timeout 5 bash -c "exec 3<>/dev/tcp/$1/$glusterd_port" 2>/dev/null
}
