# Sourced by bash: makes sure that the tests have a real Kafka, and a Java that runs it.
#
#   . scripts/lib/kafka.sh
#   ensure_kafka            # then KAFKA_LIB is the folder with its jars
#
# Which one it is says tests/kafka/pom.xml; Maven resolves it, once, into EBB_TOOLS.

. "$(dirname "${BASH_SOURCE[0]}")/install.sh"

ensure_kafka() {
    local pom version home
    pom="$(_kafka_files)/pom.xml"
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

_kafka_files() {
    (cd "$(dirname "${BASH_SOURCE[0]}")/../../tests/kafka" && pwd)
}

_install_kafka() {
    mvn --batch-mode --quiet --file "$KAFKA_POM" dependency:copy-dependencies -DoutputDirectory="$1/lib" || return 1
    # It halves what a start costs; without it brokers start all the same.
    _archive_classes "$1/lib" "$1/classes.jsa" || echo "tools: Kafka starts without an archive of its classes" >&2
}

# Starts a broker once, and has the JVM write down the classes that it loaded. The options that matter to the archive are
# those of tests/src/kafka/broker.rs.
_archive_classes() {
    local archive="$2" work
    work="$(mktemp -d)"
    KAFKA_LIB="$1" _run_broker "$work" -XX:ArchiveClassesAtExit="$archive" -Xmx320m -XX:+UseSerialGC
    kill "$KAFKA_PID" 2>/dev/null
    wait "$KAFKA_PID" 2>/dev/null
    rm -rf "$work"
    [ -s "$archive" ]
}

# A broker for measurements, in a folder of its own, as one is run: the JVM's own choices, more memory. It is there until
# `kill $KAFKA_PID`; KAFKA_BROKERS says where. A command before it (`taskset -c 1`) comes after the folder.
start_kafka() {
    local work="$1"
    shift
    ensure_kafka && KAFKA_RUN="$*" _run_broker "$work" -Xms512m -Xmx512m
}

# A broker on a free port, once it listens: FOLDER, and options of the JVM.
_run_broker() {
    local work="$1" port=$((RANDOM % 9000 + 21000)) tries=0
    shift
    local classes=(-Dlog4j2.configurationFile="$(_kafka_files)/log4j2.properties" -classpath "$KAFKA_LIB/*")
    cat >"$work/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
log.dirs=$work/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
PROPERTIES
    java "${classes[@]}" kafka.tools.StorageTool format --cluster-id=AAAAAAAAAAAAAAAAAAAAAQ --config "$work/server.properties" >/dev/null 2>&1
    # shellcheck disable=SC2086
    ${KAFKA_RUN:-} java "$@" "${classes[@]}" kafka.Kafka "$work/server.properties" >"$work/broker.log" 2>&1 &
    KAFKA_PID=$! KAFKA_BROKERS="127.0.0.1:$port"
    until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] && kill -0 "$KAFKA_PID" 2>/dev/null || break
        sleep 0.1
    done
}
