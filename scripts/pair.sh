# shellcheck shell=bash
# One master and one node on this machine's loopback: made, started, asked, stopped and removed.
# To be sourced by a script that has set `program`, `root`, `home` (the folder of it all) and `cgroup_root`, and may have
# set `wanted_master_port` and `wanted_node_port`.

root=${root:?is the folder of the workspace}
# shellcheck source=scripts/daemon.sh
. "$root/scripts/daemon.sh"
# shellcheck source=scripts/toolchain.sh
. "$root/scripts/toolchain.sh"

home=${home:?is the folder that holds the pair}
cgroup_root=${cgroup_root:?is the name of its cgroups}
# Made with the folder; without it nothing is ever removed.
mark=$home/.made-by-quickstart

make_home() {
    if [ -e "$home" ] && [ ! -e "$mark" ] && [ -n "$(ls -A "$home")" ]; then
        fail "$home has other things in it; name another folder"
    fi
    mkdir -p "$home"/{run,log,master,node,share,packages}
    touch "$mark"
}

make_image() {
    local rootfs
    [ ! -d "$home/node/img/busybox" ] || return 0
    say "making the busybox image"
    rootfs=$(mktemp -d "$home/run/busybox.XXXXXX")
    "$root/images/busybox/build" "$rootfs"
    "$binaries/berth-supervisor" image --state-dir "$home/node" add busybox "$rootfs"
    rm -rf "$rootfs"
}

berth() {
    BERTH_MASTER=http://127.0.0.1:$master_port "$root/scripts/berth" "$@"
}

# ---- starting -------------------------------------------------------------------------------------------------------

start_pair() {
    node_port=$(choose_port node "${wanted_node_port-}" 5000)
    master_port=$(choose_port master "${wanted_master_port-}" 8080)
    start node "$node_port" /resource BERTH_NODE_PORT \
        "$binaries/berth-supervisor" --listen "127.0.0.1:$node_port" --node-id 0 --state-dir "$home/node" \
        --share "$home/share" --package-root "$home/packages" --cgroup-root "$cgroup_root"
    start master "$master_port" /node/table BERTH_PORT \
        "$binaries/berth-master" --listen "127.0.0.1:$master_port" --node "0=127.0.0.1:$node_port" \
        --state-dir "$home/master" --share "$home/share"
    wait_until 20 node_is_ready || fail "the master does not reach the node; see $home/log/master.log"
}

# choose_port master|node WANTED DEFAULT: the port it has now, else the one wanted, else the default.
choose_port() {
    local running=
    if daemon_runs "$home/run/$1.pid" && [ -s "$home/run/$1.port" ]; then
        running=$(<"$home/run/$1.port")
        [ "${2:-$running}" = "$running" ] ||
            fail "the $1 already runs, on port $running; to move it, stop it first: scripts/quickstart stop"
    fi
    echo "${running:-${2:-$3}}"
}

# start master|node PORT PATH VARIABLE WORD...: starts it unless it runs, and waits until it answers PATH.
start() {
    local name=$1 port=$2 path=$3 variable=$4
    local pid_file=$home/run/$name.pid
    shift 4
    if daemon_runs "$pid_file"; then
        say "the $name already runs (pid $(daemon_pid "$pid_file"))"
        [ "$pid_file" -nt "$1" ] || say "it is older than the build; to renew it, first: scripts/quickstart stop"
    else
        ! port_is_taken "$port" ||
            fail "port $port is taken by another program; choose another, as in: $variable=$((port + 10)) $0"
        say "starting the $name on 127.0.0.1:$port"
        daemon_start "$pid_file" "$home/log/$name.log" "$@"
        echo "$port" >"$home/run/$name.port"
    fi
    wait_until 20 daemon_answers_or_died "$pid_file" "http://127.0.0.1:$port$path" || true
    answers "http://127.0.0.1:$port$path" || daemon_failed "$name" "$port"
}

daemon_failed() {
    local what="does not answer on 127.0.0.1:$2"
    daemon_runs "$home/run/$1.pid" || what="died"
    echo "--- the end of $home/log/$1.log:" >&2
    tail -n 20 "$home/log/$1.log" >&2
    fail "the $1 $what"
}

node_is_ready() {
    berth nodes | grep -qw ready
}

# ---- stopping -------------------------------------------------------------------------------------------------------

# Tasks outlive their daemons by design, so they end first: only a running pair can end them.
stop_pair() {
    if daemon_runs "$home/run/master.pid" || daemon_runs "$home/run/node.pid" || ! no_task_lives; then
        start_pair >/dev/null
        end_unfinished_jobs
    fi
    stop_daemon master
    stop_daemon node
    wait_until 10 no_task_lives || fail "processes are left in cgroups named $cgroup_root"
    wait_until 10 remove_cgroups || fail "cgroups named $cgroup_root cannot be removed"
    nothing_is_mounted || fail "something is still mounted below $home; findmnt shows it"
}

remove_home() {
    [ ! -e "$mark" ] || rm -rf "$home"
}

our_cgroups() {
    find /sys/fs/cgroup -depth -type d \( -name "$cgroup_root" -o -path "*/$cgroup_root/*" \) 2>/dev/null || true
}

no_task_lives() {
    local folder
    while read -r folder; do
        [ -z "$(cat "$folder/cgroup.procs" 2>/dev/null)" ] || return 1
    done < <(our_cgroups)
}

job_numbers() {
    berth ps --all --state "$1" | awk '$1 ~ /^[0-9]+$/ { print $1 }'
}

end_unfinished_jobs() {
    local state jobs
    for state in pending assigned running; do
        jobs=$(job_numbers "$state")
        [ -n "$jobs" ] || continue
        say "killing ${jobs//$'\n'/ }"
        # The numbers are words of their own; one that ended by itself meanwhile is no matter.
        # shellcheck disable=SC2086
        berth kill $jobs || true
    done
    wait_until 30 no_job_is_unfinished || fail "some jobs did not end within 30 s; scripts/berth ps shows them"
}

no_job_is_unfinished() {
    local state
    for state in pending assigned running; do
        [ -z "$(job_numbers "$state")" ] || return 1
    done
}

stop_daemon() {
    daemon_runs "$home/run/$1.pid" || return 0
    say "stopping the $1"
    daemon_stop "$home/run/$1.pid" 20 ||
        fail "the $1 (pid $(daemon_pid "$home/run/$1.pid")) does not end; $home/log/$1.log may say why"
}

remove_cgroups() {
    our_cgroups | while read -r folder; do rmdir "$folder" 2>/dev/null || true; done
    [ -z "$(our_cgroups)" ]
}

nothing_is_mounted() {
    ! grep -qF " $home/" /proc/self/mountinfo
}
