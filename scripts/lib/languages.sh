# Sourced by bash: makes sure that guests can be built in a language other than Rust, by setting up this shell's PATH.
#
#   . scripts/lib/languages.sh
#   ensure_language go | c | python | javascript
#
# What a language needs is installed once, into EBB_TOOLS (~/.cache/ebbtide-tools), or with apt-get; where neither can be
# done, it says what is missing, and fails.

. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

COMPONENTIZE_PY=0.25.1
COMPONENTIZE_JS=0.23.0

ensure_language() {
    case "$1" in
        go) _ensure_go ;;
        c) _ensure_c ;;
        python) _ensure_python ;;
        javascript) _ensure_javascript ;;
        *)
            echo "languages: \`$1\` is none of go, c, python and javascript" >&2
            return 2
            ;;
    esac
}

# GOOS=wasip1 is in every Go since 1.21.
_ensure_go() {
    command -v go >/dev/null 2>&1 || export PATH="$PATH:/usr/local/go/bin"
    command -v go >/dev/null 2>&1 || _apt_install golang-go || return 1
    # A newer toolchain is not fetched behind anybody's back.
    export GOTOOLCHAIN=local GOFLAGS=-mod=mod
}

# Debian's clang, with a libc and the runtime library that goes with that very clang.
_ensure_c() {
    command -v clang >/dev/null 2>&1 && command -v wasm-ld >/dev/null 2>&1 && [ -d /usr/lib/wasm32-wasi ] ||
        _apt_install clang lld wasi-libc || return 1
    local runtime
    runtime="$(clang --target=wasm32-wasi -print-libgcc-file-name)"
    [ -e "$runtime" ] || _apt_install libclang-rt-dev-wasm32 || return 1
}

_ensure_python() {
    local tools="$EBB_TOOLS/componentize-py-$COMPONENTIZE_PY"
    if [ ! -x "$tools/bin/componentize-py" ]; then
        command -v python3 >/dev/null 2>&1 || _apt_install python3 python3-venv || return 1
        _install_into "$tools" _install_componentize_py || return 1
    fi
    export PATH="$tools/bin:$PATH"
}

_install_componentize_py() {
    python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check "componentize-py==$COMPONENTIZE_PY"
}

_ensure_javascript() {
    local tools="$EBB_TOOLS/componentize-js-$COMPONENTIZE_JS"
    if [ ! -d "$tools/node_modules/@bytecodealliance/componentize-js" ]; then
        command -v npm >/dev/null 2>&1 || _apt_install nodejs npm || return 1
        _install_into "$tools" _install_componentize_js || return 1
    fi
    export PATH="$tools/node_modules/.bin:$PATH"
    export NODE_PATH="$tools/node_modules"
}

_install_componentize_js() {
    npm install --silent --no-audit --no-fund --prefix "$1" "@bytecodealliance/componentize-js@$COMPONENTIZE_JS"
}
