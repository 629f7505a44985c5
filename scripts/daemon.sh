# shellcheck shell=bash
# Daemons that a script starts: one file says who they are, so that stopping can never hit a stranger.
# To be sourced. Knows nothing of berth but how its master and its node are asked whether they are there.

# Runs the words until they succeed, at most $1 seconds long; fails if they never did.
wait_until() {
    local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    until "$@"; do
        [ "${EPOCHREALTIME/[.,]/}" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# When process $1 started, in clock ticks since boot: the 22nd word of its stat (proc(5)), counted behind
# the program's name, which may have blanks in it.
start_time() {
    local stat words
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -r -a words <<<"${stat##*) }"
    [ "${words[0]}" != Z ] && echo "${words[19]}"
}

boot_id() {
    cat /proc/sys/kernel/random/boot_id
}

# Starts the words as a daemon of its own session: daemon_start PIDFILE LOGFILE WORD...
# The pid file holds pid, start time and boot: together they name one process for ever.
daemon_start() {
    local pid_file=$1 log_file=$2
    shift 2
    (cd / && exec setsid "$@" >>"$log_file" 2>&1 </dev/null) &
    local pid=$!
    echo "$pid $(start_time "$pid") $(boot_id)" >"$pid_file"
    disown "$pid"
}

# The pid of the daemon named by pid file $1, if that very process still runs.
daemon_pid() {
    local pid started boot
    { read -r pid started boot <"$1"; } 2>/dev/null || return 1
    [ "$boot" = "$(boot_id)" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

daemon_runs() {
    daemon_pid "$1" >/dev/null
}

daemon_is_gone() {
    ! daemon_runs "$1"
}

# Asks it to end and waits for that: daemon_stop PIDFILE SECONDS. Fails if it is still there.
daemon_stop() {
    local pid
    pid=$(daemon_pid "$1") && kill -TERM "$pid" 2>/dev/null
    wait_until "$2" daemon_is_gone "$1" && rm -f "$1"
}

# Whether anything listens on port $1 of this machine's loopback.
port_is_taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Whether a server answers GET $1 with success.
answers() {
    curl -q --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$1"
}

# Whether the daemon of pid file $1 answers at $2, or will never.
daemon_answers_or_died() {
    answers "$2" || daemon_is_gone "$1"
}
