# The wasmtime of the command line, built once from the registry: what Ebbtide is compared with. Not needed to build or
# to test.

# The version that the workspace has.
wasmtime_version() { sed -n '/^name = "wasmtime"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock; }

# Says where it is.
wasmtime_cli() {
    local version root
    version="$(wasmtime_version)"
    root="${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide-tools/wasmtime-$version"
    if [ ! -x "$root/bin/wasmtime" ]; then
        echo "building wasmtime-cli $version, which takes some minutes" >&2
        # What `wasmtime serve` needs of it, and no more.
        cargo install --quiet --locked --version "$version" --root "$root" wasmtime-cli --no-default-features \
            --features serve,run,cranelift,parallel-compilation,pooling-allocator,component-model,component-model-async,gc,gc-drc,gc-null,threads,stack-switching >&2
    fi
    echo "$root/bin/wasmtime"
}
