# shellcheck shell=bash
# What every script needs of the machine: root, Debian packages, and one way of speaking to whoever runs it.
# To be sourced by a script that has set `program`.

program=${program:?names the script that sources this}

say() {
    printf '==> %s\n' "$*"
}

fail() {
    echo "$program: $*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "run this as root: $*"
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
    # The packages that it recommends make a bridge and start a DHCP server.
    lxc-execute) echo lxc --no-install-recommends ;;
    glusterd) echo glusterfs-server ;;
    ip) echo iproute2 ;;
    mkfs.ext4) echo e2fsprogs ;;
    mount.glusterfs) echo glusterfs-client ;;
    qemu-system-x86_64) echo qemu-system-x86 ;;
    setsid) echo util-linux ;;
    mke2fs) echo e2fsprogs ;;
    strip) echo binutils ;;
    *) echo "$1" ;;
    esac
}
