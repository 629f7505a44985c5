# shellcheck shell=bash
# What building berth needs: a Rust that is new enough. Never fetches one: which to take is the operator's choice.
# To be sourced by a script that has set `program` and `root`.

root=${root:?is the folder of the workspace}
# shellcheck source=scripts/machine.sh
. "$root/scripts/machine.sh"

# Where cargo puts the release binaries; pair.sh starts them from there.
# shellcheck disable=SC2034
binaries=${CARGO_TARGET_DIR:-$root/target}/release

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
