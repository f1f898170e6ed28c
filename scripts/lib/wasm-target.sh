# Sourced by bash: makes sure that guests can be built, by setting up this shell's environment.
#
#   . scripts/lib/wasm-target.sh
#   ensure_wasm_target [program]
#   cargo build --release --target wasm32-wasip2
#
# Where rustup can add the wasm targets, nothing else happens. Where its server can't be reached, Debian's packages give
# the standard library's sources, a compiler that matches them and a libc; the linkers are those that the rustup toolchain
# ships. `cargo build --target wasm32-wasip2` then works unchanged, as in the `[build] command` of a manifest, and so does
# wasm32-wasip1. Modules that are programs (wasip1 `_start`) are built with `ensure_wasm_target program`: a library is a
# reactor, and the two start with different files of libc.
#
# What is exported is for guests alone: where native builds follow in the same script, call it in a subshell, as in
# `(ensure_wasm_target && exec ebb dev guest-examples/flights)`.
#
# EBB_WASM_FALLBACK=1 takes the second way without trying the first.

ensure_wasm_target() {
    local kind="${1:-library}"
    if [ -z "${EBB_WASM_FALLBACK:-}" ] && _wasm_targets_from_rustup; then
        return 0
    fi
    _wasm_targets_from_debian "$kind"
}

_wasm_targets_from_rustup() {
    local installed
    installed="$(rustup target list --installed 2>/dev/null)" || return 1
    case "$installed" in
        *wasm32-wasip1*wasm32-wasip2*) return 0 ;;
    esac
    echo "wasm target: adding wasm32-wasip1 and wasm32-wasip2 with rustup" >&2
    rustup target add wasm32-wasip1 wasm32-wasip2 >&2
}

_wasm_targets_from_debian() {
    local kind="$1" crt tools libc=/usr/lib/wasm32-wasi
    case "$kind" in
        library) crt=crt1-reactor.o ;;
        program) crt=crt1-command.o ;;
        *)
            echo "wasm target: \`$kind\` is neither \`library\` nor \`program\`" >&2
            return 2
            ;;
    esac
    _install_debian_packages rustc-web rust-web-src wasi-libc || return 1

    # Where the toolchain that is active here keeps rust-lld and wasm-component-ld.
    tools="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin"
    if [ ! -x "$tools/rust-lld" ] || [ ! -x "$tools/wasm-component-ld" ]; then
        echo "wasm target: $tools has no rust-lld and wasm-component-ld; install Rust with rustup" >&2
        return 1
    fi

    export PATH="$tools:$PATH"
    export RUSTC=/usr/bin/rustc
    # Debian's compiler is a stable one; building its own standard library is what it is here for.
    export RUSTC_BOOTSTRAP=1
    export CARGO_UNSTABLE_BUILD_STD=std,panic_abort
    local flags="-C link-self-contained=no -L native=$libc -C link-arg=$libc/$crt"
    export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="$flags"
    export CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS="$flags"
    export CARGO_TARGET_WASM32_WASIP1_LINKER="$tools/rust-lld"
    export CARGO_TARGET_WASM32_WASIP2_LINKER="$tools/wasm-component-ld"
}

_install_debian_packages() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0

    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "wasm target: needs the packages ${missing[*]}; as root, run: apt-get install ${missing[*]}" >&2
            return 1
        fi
        as_root=(sudo)
    fi
    echo "wasm target: installing ${missing[*]}" >&2
    # A fresh image has no package lists.
    if ! "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}" >&2; then
        "${as_root[@]}" apt-get update >&2 &&
            "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}" >&2
    fi
}
