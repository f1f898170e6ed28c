# Sourced by bash: makes sure that the tests have a real Kafka, and a Java that runs it.
#
#   . scripts/lib/kafka.sh
#   ensure_kafka            # then KAFKA_LIB is the folder with its jars
#
# Which one it is says tests/kafka/pom.xml; Maven resolves it, once, into EBB_TOOLS.

. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

ensure_kafka() {
    local pom version home
    pom="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/tests/kafka/pom.xml"
    version="$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$pom")"
    home="$EBB_TOOLS/kafka-$version"
    command -v java >/dev/null 2>&1 || _apt_install default-jre-headless || return 1
    # For the certificates of brokers that speak TLS.
    command -v openssl >/dev/null 2>&1 || _apt_install openssl || return 1
    if [ ! -e "$home/.complete" ]; then
        command -v mvn >/dev/null 2>&1 || _apt_install maven || return 1
        KAFKA_POM="$pom" _install_into "$home" _install_kafka || return 1
    fi
    export KAFKA_LIB="$home/lib"
}

_install_kafka() {
    mvn --batch-mode --quiet --file "$KAFKA_POM" dependency:copy-dependencies -DoutputDirectory="$1/lib" || return 1
    # It halves what a start costs; without it brokers start all the same.
    _archive_classes "$1/lib" "$1/classes.jsa" || echo "tools: Kafka starts without an archive of its classes" >&2
}

# Starts a broker once, and has the JVM write down the classes that it loaded. The options that matter to the archive are
# those of tests/src/kafka/broker.rs.
_archive_classes() {
    local lib="$1" archive="$2" port=$((RANDOM % 9000 + 21000)) work broker tries=0
    local java=(java -Xmx320m -XX:+UseSerialGC -classpath "$lib/*")
    work="$(mktemp -d)"
    cat >"$work/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
log.dirs=$work/data
PROPERTIES
    "${java[@]}" kafka.tools.StorageTool format --cluster-id=AAAAAAAAAAAAAAAAAAAAAQ --config "$work/server.properties" >/dev/null 2>&1
    "${java[@]}" -XX:ArchiveClassesAtExit="$archive" kafka.Kafka "$work/server.properties" >/dev/null 2>&1 &
    broker=$!
    until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] && kill -0 "$broker" 2>/dev/null || break
        sleep 0.1
    done
    kill "$broker" 2>/dev/null
    wait "$broker" 2>/dev/null
    rm -rf "$work"
    [ -s "$archive" ]
}
