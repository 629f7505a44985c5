# shellcheck shell=bash
# What both GlusterFS scripts need: names that are names, where they lead, and whether a host answers.
# To be sourced by a script that has set `program` and `scripts`.

scripts=${scripts:?is the folder of this file}
# shellcheck source=scripts/machine.sh
. "$scripts/machine.sh"

# The hosts on the command line, and what --hosts says of them: set by the script that sources this.
hosts=() names=

# Where glusterd listens on every host.
glusterd_port=24007

misused() {
    echo "$program: $*; see $program --help" >&2
    exit 2
}

has_systemd() {
    [ -d /run/systemd/system ]
}

# The words with $1 between them.
joined() {
    local IFS=$1
    shift
    echo "$*"
}

# A volume is one path component of gluster's own; a host is a name or an address.
check_volume_name() {
    [[ $1 =~ ^[A-Za-z0-9_][A-Za-z0-9_-]*$ ]] || misused "--volume: \"$1\" is not a name of letters, digits, - and _"
}

check_host_name() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9.-]*$ ]] || misused "\"$1\" is not a host name or IPv4 address"
}

# A folder both scripts pass on as one word, to gluster and into fstab.
check_folder() {
    [[ $2 == /* && $2 != *[[:space:],:]* ]] || misused "$1: \"$2\" is not an absolute path without blanks, commas and colons"
}

check_addresses() {
    local host
    for host in "${hosts[@]}"; do
        getent ahosts "$host" >/dev/null || fail "$host has no address here
hint: give it a name in DNS, or let --hosts $host=ADDRESS write it into /etc/hosts"
    done
}

# Whether glusterd listens on host $1.
glusterd_answers() {
    timeout 5 bash -c "exec 3<>/dev/tcp/$1/$glusterd_port" 2>/dev/null
}

# ---- --hosts --------------------------------------------------------------------------------------------------------

# Without --hosts names are the operator's business, and /etc/hosts is not touched.
# With it: NAME=ADDRESS,... become lines of it. A name that stands there already with that address is left as it is;
# one that stands there with another is the operator's to settle.
check_hosts_option() {
    local pair
    for pair in ${names//,/ }; do
        [[ $pair =~ ^[A-Za-z0-9][A-Za-z0-9.-]*=[0-9a-fA-F.:]+$ ]] || misused "--hosts: \"$pair\" is not NAME=ADDRESS"
    done
}

write_hosts() {
    local pair name address present
    for pair in ${names//,/ }; do
        name=${pair%%=*} address=${pair#*=}
        present=$(awk -v name="$name" '$1 !~ /^#/ { for (i = 2; i <= NF; i++) if ($i == name) print $1 }' /etc/hosts)
        if [ -z "$present" ]; then
            say "writing $address $name into /etc/hosts"
            echo "$address $name" >>/etc/hosts || fail "cannot write /etc/hosts"
        elif ! grep -qxF "$address" <<<"$present"; then
            fail "--hosts: $name is ${present//$'\n'/ and } in /etc/hosts already, not $address
hint: remove that line first, if it is wrong"
        fi
    done
}
