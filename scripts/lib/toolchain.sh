# Sourced by bash: makes sure that native code can be built, on a Debian machine that has only rustup's stable toolchain.
#
#   . scripts/lib/toolchain.sh
#   ensure_toolchain

ensure_toolchain() {
    if ! command -v cargo >/dev/null 2>&1; then
        [ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "Rust is missing: install it with rustup (https://rustup.rs), then run this again" >&2
        return 1
    fi
    _pinned_or_stable
    # SQLite and librdkafka are compiled from their sources, the latter with the system's OpenSSL and zlib.
    local missing=()
    command -v cc >/dev/null 2>&1 || missing+=(gcc libc6-dev)
    command -v c++ >/dev/null 2>&1 || missing+=(g++)
    command -v make >/dev/null 2>&1 || missing+=(make)
    command -v pkg-config >/dev/null 2>&1 || missing+=(pkg-config)
    _has_header openssl/ssl.h || missing+=(libssl-dev)
    _has_header zlib.h || missing+=(zlib1g-dev)
    [ ${#missing[@]} -eq 0 ] || _install_with_apt "${missing[@]}" || return 1
}

_has_header() { printf '#include <%s>\n' "$1" | cc -E - >/dev/null 2>&1; }

# Takes the pinned toolchain; where it is not installed and can't be had, the stable one, if that is new enough.
_pinned_or_stable() {
    local pinned
    pinned="$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)"
    if rustup run "$pinned" rustc --version >/dev/null 2>&1; then
        return 0
    fi
    if rustup toolchain install "$pinned" --profile minimal --component clippy --component rustfmt >&2; then
        return 0
    fi
    echo "toolchain: Rust $pinned can't be installed; going on with stable" >&2
    export RUSTUP_TOOLCHAIN=stable
}

_install_with_apt() {
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        echo "missing: $*; install them with apt-get as root" >&2
        return 1
    fi
    local as_root=""
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo "installing $*" >&2
    $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >&2
}
