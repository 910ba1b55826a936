#!/bin/bash
# Runs end-to-end tests, or the lab, inside the oracle's guest: another kernel (6.1), which has what test machines often lack, such as tunnel devices,
# VLANs and SCTP.
#
#     IPVS_ORACLE=DIR tests/oracle/end_to_end.sh [ARGUMENTS OF THE TESTS]       such as: vlans:: tunnels::
#     IPVS_ORACLE=DIR tests/oracle/end_to_end.sh lab [ARGUMENTS OF shunt-lab]   such as: --quick --mode tun
#
# DIR is the guest's folder, whose setup.sh has been run. GUEST are further options for its run.sh, such as "--backend qemu --smp 2" for tests that need two
# workers, at a twentieth of the speed.
set -euo pipefail

if [ -n "${ORACLE_BACKEND:-}" ]; then # inside
	modprobe -qa veth tun af_packet 8021q ipip ip6_tunnel sit ip_gre ip6_gre fou fou6 sctp nf_tables || true
	cd /oracle/share
	[ "${1:-}" != lab ] || exec ./shunt-lab "${@:2}"
	exec ./end_to_end --test-threads 1 "$@"
fi

cd "$(dirname "$0")/../.."
guest=${IPVS_ORACLE:?the folder of the guest}
cargo build --quiet --bins
tests=$(cargo test --quiet -p shunt-tests --test end_to_end --no-run --message-format json |
	sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep /end_to_end-)
target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
chmod 755 "$share" # a test starts shunt as a user without rights
cp "$target"/debug/shunt{,-lab} "$share"
cp "$tests" "$share/end_to_end"
# shellcheck disable=SC2086
"$guest/run.sh" --share "$share" --mem 4096 --timeout "${TIMEOUT:-1800}" ${GUEST:-} "$PWD/tests/oracle/end_to_end.sh" "$@"
