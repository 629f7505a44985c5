# shellcheck shell=bash
# Builds one of the tests' long programs, tests/src/bin/*.rs, and becomes it. To be sourced by a script that has set
# `program` to its name and `root`.

root=${root:?is the folder of the workspace}
program=${program:?is the program in tests/src/bin}
# shellcheck source=scripts/machine.sh
. "$root/scripts/machine.sh"
# shellcheck source=scripts/toolchain.sh
. "$root/scripts/toolchain.sh"

# become_program WORD...: with these arguments.
become_program() {
    need_cargo
    cd "$root" || fail "cannot enter $root"
    # The daemons are started from where the program itself lies.
    cargo build --workspace --locked --quiet --release || fail "the build failed"
    case " $* " in
    *" --help "* | *" -h "*) ;;
    *)
        need_root "containers need it"
        need_commands cc busybox
        ;;
    esac
    exec "${CARGO_TARGET_DIR:-$root/target}/release/$program" "$@"
}
