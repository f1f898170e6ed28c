# Sourced by bash: clients of Kafka that are not ours, for tests of what they produce.
#
#   . scripts/lib/kafka-clients.sh
#   ensure_kafka_client kcat          # on the path
#   ensure_kafka_client kafkajs       # NODE_PATH has it
#   ensure_kafka_client confluent     # KAFKA_PYTHON is an interpreter that has it

. "$(dirname "${BASH_SOURCE[0]}")/install.sh"
. "$(dirname "${BASH_SOURCE[0]}")/npm.sh"

KAFKAJS=2.2.4
KAFKAJS_DIGEST=sha512-j/YeapB1vfPT2iOIUn/vxdyKEuhuY2PxMBvf5JWux6iSaukAccrMtXEY/Lb7OvavDhOWME589bpLrEdnVHjfjA==
CONFLUENT_KAFKA=2.16.1

ensure_kafka_client() {
    case "$1" in
        kcat) command -v kcat >/dev/null 2>&1 || _apt_install kcat ;;
        kafkajs)
            command -v npm >/dev/null 2>&1 || _apt_install nodejs npm || return 1
            _install_into "$EBB_TOOLS/kafkajs-$KAFKAJS" _install_kafkajs || return 1
            export NODE_PATH="$EBB_TOOLS/kafkajs-$KAFKAJS"
            ;;
        confluent)
            command -v python3 >/dev/null 2>&1 || _apt_install python3 python3-venv || return 1
            _install_into "$EBB_TOOLS/confluent-kafka-$CONFLUENT_KAFKA" _install_confluent || return 1
            export KAFKA_PYTHON="$EBB_TOOLS/confluent-kafka-$CONFLUENT_KAFKA/bin/python"
            ;;
        *)
            echo "kafka clients: \`$1\` is none of kcat, kafkajs and confluent" >&2
            return 2
            ;;
    esac
}

_install_kafkajs() { mkdir -p "$1" && fetch_npm kafkajs "$KAFKAJS" "$KAFKAJS_DIGEST" "$1"; }

_install_confluent() {
    python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check "confluent-kafka==$CONFLUENT_KAFKA"
}
