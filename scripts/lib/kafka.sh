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
    mvn --batch-mode --quiet --file "$KAFKA_POM" dependency:copy-dependencies -DoutputDirectory="$1/lib"
}
