#!/bin/sh
# One host of a fleet, for systemd or a container: `host.sh head` once, `host.sh node` on every host with devices.
# Runs until SIGTERM; `host.sh health` says whether the head answers. docs/fleet.md tells what stands around it.
set -eu

: "${MERGENET_RAY_ADDRESS:?set it to HOST:PORT of the head, the same on every host}"
: "${MERGENET_FLEET_HOST:?set it to the address at which the other hosts reach this one}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "${RAY_AUTH_TOKEN_PATH:-}" ]; then
    echo "set RAY_AUTH_TOKEN_PATH to a file with the fleet's token: whoever reaches Ray without one runs code here" >&2
    exit 1
fi
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# A host that is lost is noticed within about 6 seconds; Ray's own values take up to a minute.
export RAY_health_check_initial_delay_ms="${RAY_health_check_initial_delay_ms:-2000}"
export RAY_health_check_period_ms="${RAY_health_check_period_ms:-1000}"
export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-2000}"
export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"

# The object store carries log lines and nothing else; ports 0 to 0 let every worker process take a free one.
set -- "$@" --block --disable-usage-stats --node-ip-address="$MERGENET_FLEET_HOST" \
    --object-store-memory=100000000 --min-worker-port=0 --max-worker-port=0 --include-log-monitor=false \
    ${MERGENET_FLEET_TEMP:+--temp-dir="$MERGENET_FLEET_TEMP"}
kind=$1
shift
case $kind in
head)
    exec ray start --head --port="${MERGENET_RAY_ADDRESS##*:}" --num-cpus=0 --num-gpus=0 \
        --include-dashboard=false --no-monitor "$@"
    ;;
node)
    # GPUs are found by Ray; a host without any lends so many CPU slots
    exec ray start --address="$MERGENET_RAY_ADDRESS" --num-cpus="${MERGENET_CPU_SLOTS:-1}" "$@"
    ;;
health)
    exec ray health-check --address "$MERGENET_RAY_ADDRESS"
    ;;
*)
    echo "host.sh: '$kind' is not head, node or health" >&2
    exit 2
    ;;
esac
