# Sourced by bash: how tools are installed that the tests need and a Debian machine may not have.

EBB_TOOLS="${EBB_TOOLS:-$HOME/.cache/ebbtide-tools}"

# There whole or not at all, also when two want it at once.
_install_into() {
    local tools="$1" install="$2"
    mkdir -p "$EBB_TOOLS"
    (
        flock 9
        [ -e "$tools/.complete" ] && exit 0
        rm -rf "$tools"
        echo "tools: installing $(basename "$tools")" >&2
        "$install" "$tools" >&2 && touch "$tools/.complete"
    ) 9>"$tools.lock"
}

_apt_install() {
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        echo "tools: missing $*; as root, run: apt-get install $*" >&2
        return 1
    fi
    local as_root=""
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo "tools: installing $*" >&2
    # A fresh image has no package lists.
    (
        flock 9
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
            { $as_root apt-get update -qq >&2 && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2; }
    ) 9>"${TMPDIR:-/tmp}/ebbtide-apt.lock"
}
