# shellcheck shell=bash
# What building berth needs of a machine: Debian packages, and a Rust that is new enough.
# To be sourced by a script that has set `program` and `root`. Never fetches a toolchain: which one to take is the
# operator's choice.

program=${program:?names the script that sources this}
root=${root:?is the folder of the workspace}
# Where cargo puts the release binaries; pair.sh starts them from there.
# shellcheck disable=SC2034
binaries=${CARGO_TARGET_DIR:-$root/target}/release

say() {
    printf '==> %s\n' "$*"
}

fail() {
    echo "$program: $*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "containers need root; run this as root"
}

# Installs the Debian packages that the missing ones of these commands come in.
need_commands() {
    local command missing=()
    for command in "$@"; do
        has_command "$command" || missing+=("$(package_of "$command")")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "please install ${missing[*]} (their Debian names); there is no apt-get here"
    say "installing ${missing[*]}"
    apt-get update -qq || say "apt-get update failed; trying with the package lists that are here"
    # A package's name may be two words.
    # shellcheck disable=SC2068
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ${missing[@]} >/dev/null ||
        fail "apt-get could not install ${missing[*]}"
}

has_command() {
    local path
    path=$(command -v "$1") || return 1
    # The image needs a busybox that runs where there is no loader.
    [ "$1" != busybox ] || ! ldd "$path" >/dev/null 2>&1
}

package_of() {
    case $1 in
    busybox) echo busybox-static ;;
    cc) echo gcc libc6-dev ;;
    setsid) echo util-linux ;;
    *) echo "$1" ;;
    esac
}

need_cargo() {
    local wanted have
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null ||
        fail "there is no cargo here; install Rust $wanted or newer as https://rustup.rs says, then run this again"
    have=$(cd "$root" && cargo --version | awk '{ print $2 }')
    printf '%s\n' "$wanted" "$have" | sort -C -V ||
        fail "cargo is $have, and berth needs Rust $wanted or newer; https://rustup.rs has it"
}

build_release() {
    say "building berth (the first time takes a few minutes)"
    (cd "$root" && cargo build --release --locked --quiet -p supervisor -p master) || fail "the build failed"
}
