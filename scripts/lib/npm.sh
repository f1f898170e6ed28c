# Sourced by bash: packages of npm, unpacked once their digest is right.
#
#   . scripts/lib/npm.sh
#   fetch_npm NAME VERSION sha512-… FOLDER     # unpacks into FOLDER/NAME

fetch_npm() {
    local name="$1" version="$2" integrity="$3" folder="$4" archive digest
    command -v npm >/dev/null || { echo "npm is missing: install Node.js, then run this again" >&2; return 1; }
    archive="$(cd "$folder" && npm pack --silent "$name@$version" 2>/dev/null | tail -n 1)"
    [ -n "$archive" ] || { echo "npm: $name@$version could not be fetched" >&2; return 1; }
    digest="sha512-$(node -p 'crypto.createHash("sha512").update(fs.readFileSync(process.argv[1])).digest("base64")' "$folder/$archive")"
    if [ "$digest" != "$integrity" ]; then
        echo "npm: $name@$version has the digest $digest, and should have $integrity" >&2
        return 1
    fi
    mkdir -p "$folder/$name"
    tar -xzf "$folder/$archive" -C "$folder/$name" --strip-components=1
    rm "$folder/$archive"
}
