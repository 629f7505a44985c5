# shellcheck shell=bash
# Makes what a machine of tests/vm/run boots: Debian's kernel, and a root of busybox, the daemons and the tests.
# To be sourced by a script that has set `program`, `root`, `here`, `cache` and `scratch`.

root=${root:?is the folder of the workspace}
here=${here:?is the folder of the machine\'s scripts}
cache=${cache:?is where the kernel is kept}
scratch=${scratch:?is where the machine is made}
# shellcheck source=scripts/toolchain.sh
. "$root/scripts/toolchain.sh"

# The kernel's package: the newest of Debian's for virtual machines.
kernel_package=linux-image-cloud-amd64
# What speaks of containers and cgroups, of the end-to-end tests.
test_files=(container final_states adoption)

# ---- the kernel -----------------------------------------------------------------------------------------------------

# Leaves vmlinuz and the modules of the kernel's release in the cache.
need_kernel() {
    local modules
    [ ! -e "$cache/kernel-release" ] || return 0
    say "fetching Debian's kernel into $cache"
    mkdir -p "$cache" "$scratch/kernel"
    [ -n "$(newest_kernel)" ] || apt-get update -qq || true
    (cd "$scratch" && apt-get download -qq "$(newest_kernel)" >/dev/null 2>"$scratch/apt.log") ||
        { cat "$scratch/apt.log" >&2; fail "cannot fetch $kernel_package; hint: apt-get update"; }
    dpkg-deb -x "$scratch"/linux-image-*.deb "$scratch/kernel"
    cp "$scratch"/kernel/boot/vmlinuz-* "$cache/vmlinuz"
    modules=$(echo "$scratch"/kernel/lib/modules/*/kernel)
    mkdir -p "$cache/modules"
    # Of overlayfs, and of a disk.
    find "$modules/fs/overlayfs" "$modules/drivers/virtio" "$modules/drivers/block" \
        \( -name 'overlay.ko*' -o -name 'virtio.ko*' -o -name 'virtio_ring.ko*' -o -name 'virtio_pci*.ko*' \
        -o -name 'virtio_blk.ko*' \) -exec cp -t "$cache/modules" {} +
    # Last, so that a cache that was cut short is filled anew.
    ls "$scratch/kernel/lib/modules" >"$cache/kernel-release"
}

# The package that holds the kernel; the one with the short name only names it.
newest_kernel() {
    apt-cache depends "$kernel_package" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}

# ---- the machine's files --------------------------------------------------------------------------------------------

# Prints a line for each of the test binaries: its name and its file. The daemons are optimised: unoptimised ones would
# take three times as long where each instruction is emulated.
build_tests() {
    local files=("${test_files[@]/#/--test=}")
    (cd "$root" && cargo build --release --locked --quiet -p supervisor -p master &&
        cargo test --locked -p tests --bin power-loss --no-run "${files[@]}" 2>&1) >"$scratch/build.log" ||
        { cat "$scratch/build.log" >&2; fail "the build failed"; }
    sed -n 's,^ *Executable tests/\(.*\)\.rs (\(.*\))$,\1 \2,p' "$scratch/build.log"
}

# Leaves the machine's root in folder $1. Each test binary lies in a folder beside the daemons, which it looks for.
make_machine() {
    local machine=$1 binary name
    "$root/images/busybox/build" "$machine"
    cp -a "$machine" "$scratch/image"
    mv "$scratch/image" "$machine/image"
    mkdir -p "$machine/var/lib" "$machine/lib"
    install -m 755 "$here/init" "$here/checks" "$machine/"
    build_tests >"$scratch/tests"
    for binary in berth-supervisor berth-master; do
        install_binary "$machine" "$binaries/$binary" "usr/bin/$binary"
    done
    install_binary "$machine" "${binaries%/*}/debug/power-loss" usr/bin/power-loss
    while read -r name binary; do
        install_binary "$machine" "$(cd "$root" && realpath "$binary")" "usr/bin/tests/$name"
    done <"$scratch/tests"
    install_modules "$machine"
}

# Stripped: what a debugger wants would only make the machine slow to boot.
install_binary() {
    local library
    install -D -m 755 "$2" "$1/$3"
    strip "$1/$3"
    ldd "$2" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
        [ -e "$1$library" ] || install -D -m 755 "$library" "$1$library"
    done
}

# overlayfs is there as on a fresh Debian: a module that nobody has loaded, and a modprobe that finds it.
install_modules() {
    local release modules
    release=$(cat "$cache/kernel-release")
    modules=$1/lib/modules/$release
    mkdir -p "$modules"
    cp "$cache"/modules/* "$modules"
    busybox depmod -b "$1" "$release"
}

pack_machine() {
    (cd "$1" && find . -print0 | cpio --null --create --format=newc --quiet) >"$2"
}
