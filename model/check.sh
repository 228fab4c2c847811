#!/usr/bin/env bash
# Search all states of protocol.pml: the good variants violate nothing, and each broken one what README.md says.
# check.sh trail "-DBLIND" prints how a variant does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! { command -v spin && command -v gcc; } >/dev/null; then
	echo "the model needs spin and gcc: apt-get install spin gcc, or brew install spin" >&2
	exit 1
fi

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# search FOLDER VARIANT EFFORT: leave what is found in FOLDER/log. With -l it is a loop: without one, every run ends.
search() {
	local macros kind=-DSAFETY loops=
	macros=${2/ -l/}
	[ "$macros" = "$2" ] || { kind=-DNP && loops=-l; }
	mkdir "$1" && cp protocol.pml "$1" && cd "$1"
	# shellcheck disable=SC2086 # a variant is several words
	spin $macros -a protocol.pml >log &&
		gcc -O$3 -w $kind -o pan pan.c >>log &&
		./pan -m10000 -w22 $loops >>log
}

# check VARIANT EXPECTED WHAT: print one line; fails unless that is what is found, nothing in a complete search only.
check() (
	folder=$(mktemp -u "$place/XXXXXX")
	[ "$2" = nothing ] && effort=1 || effort=0
	(search "$folder" "$1" "$effort") || { cat "$folder/log" >&2 && return 1; }
	found=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$folder/log")
	states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$folder/log")
	printf '%-31s%9d  %-46s%s\n' "$1" "$states" "${found:-nothing}" "$3"
	if [ "$2" = nothing ]; then
		[ -z "$found" ] && ! grep -q -e "not completed" -e "too small" "$folder/log"
	else
		[[ $found = *"$2"* ]]
	fi || { echo "$1: expected $2, found ${found:-nothing}" >&2 && return 1; }
)

if [ "${1:-}" = trail ]; then
	(search "$place/trail" "${2:-}" 0)
	cd "$place/trail"
	# shellcheck disable=SC2086
	spin ${2:-} -t -p -g protocol.pml
	exit
fi

good() { check "$1" nothing "$2"; }
broken() { check "$1" "$2" "$3"; }
twice="effect[about[_pid]]<=1"
bare_twice="bare<=1"
statement_twice="together<=1"
out_of_order="state[1]==1"
for_ever="invalid end state"

printf '%-31s%9s  %-46s%s\n' variant states found "what it is"
(
	good "-DRUNNERS=3" "the protocol, one misfortune"
	good "-DUNJUDGED" "a person judges the bare statement"
	good "-DNOLOCK" "no lock at all: the claim alone"
) &
one=$!
(
	good "-DRUNNERS=3 -l" "the protocol: every run ends"
	good "-DNOLOCK -DRUNNERS=2 -l" "no lock: every run ends"
	good "-DRUNNERS=2 -DFAULTS=2" "two misfortunes"
	broken "-DOUTSIDE" "$twice" "the record outside the migration's transaction"
	broken "-DNOCLAIM -DNOLOCK" "$twice" "neither claim nor lock"
	broken "-DNOCLAIM" "$twice" "no claim, and the lock slips"
	broken "-DNOCLAIM -DEARLY" "$twice" "no claim, compared before the lock only"
	broken "-DBLIND" "$bare_twice" "taken over from a session that lives"
	broken "-DSTALE" "$statement_twice" "taken over by the token alone"
	broken "-DGUESS" "$out_of_order" "a lost answer taken for a COMMIT"
	broken "-DUNJUDGED -DUNMARKED" "$bare_twice" "a bare statement without a mark"
	broken "-DKEPT" "$for_ever" "a lock that outlives its session"
) &
two=$!
status=0
wait "$one" || status=1
wait "$two" || status=1
exit "$status"
