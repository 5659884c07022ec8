#!/bin/sh
# One host of a fleet, for systemd or a container: `host.sh head` once, `host.sh node` on every host with devices.
# Runs until SIGTERM; `host.sh health` checks whether the head answers. Setup: docs/fleet.md.
set -eu

: "${MERGENET_RAY_ADDRESS:?set it to HOST:PORT of the head, the same on every host}"
: "${MERGENET_FLEET_HOST:?set it to the address at which the other hosts reach this one}"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "${RAY_AUTH_TOKEN_PATH:-}" ]; then
    echo "set RAY_AUTH_TOKEN_PATH to a file with the fleet's token: without one, anyone who can reach Ray can run code here" >&2
    exit 1
fi
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# A lost host is noticed within about 6 seconds; with Ray's defaults it takes up to a minute.
export RAY_health_check_initial_delay_ms="${RAY_health_check_initial_delay_ms:-2000}"
export RAY_health_check_period_ms="${RAY_health_check_period_ms:-1000}"
export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-2000}"
export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"

# The object store holds log lines only; ports 0 to 0 let every worker process take a free port.
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
    # Ray finds the GPUs; a host without any offers this many CPU slots
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
