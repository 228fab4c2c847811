#!/usr/bin/env bash
# Search all states of protocol.pml: the good variants violate nothing, and each broken one something.
# check.sh trail "-DBLIND" prints how a variant does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v spin gcc >/dev/null; then
	echo "the model needs spin and gcc: apt-get install spin gcc, or brew install spin" >&2
	exit 1
fi

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# search FOLDER VARIANT: leave what is found in FOLDER/log. With -l it is a loop: without one, every run ends.
search() {
	local macros kind=-DSAFETY loops=
	macros=${2/ -l/}
	[ "$macros" = "$2" ] || { kind=-DNP && loops=-l; }
	mkdir "$1" && cp protocol.pml "$1" && cd "$1"
	# shellcheck disable=SC2086 # a variant is several words
	spin $macros -a protocol.pml >log
	gcc -O1 -w $kind -o pan pan.c >>log
	./pan -m10000 -w22 $loops >>log
}

# check VARIANT EXPECTED WHAT: print one line; fails unless the search was complete and found nothing, or found something.
check() (
	folder=$(mktemp -u "$place/XXXXXX")
	(search "$folder" "$1") || { cat "$folder/log" >&2 && return 1; }
	found=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$folder/log")
	states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$folder/log")
	printf '%-31s%9d  %-46s%s\n' "$1" "$states" "${found:-nothing}" "$3"
	if [ "$2" = nothing ]; then
		[ -z "$found" ] && ! grep -q -e "not completed" -e "too small" "$folder/log"
	else
		[ -n "$found" ]
	fi || { echo "$1: expected to find $2" >&2 && return 1; }
)

if [ "${1:-}" = trail ]; then
	(search "$place/trail" "${2:-}")
	cd "$place/trail"
	# shellcheck disable=SC2086
	spin ${2:-} -t -p -g protocol.pml
	exit
fi

printf '%-31s%9s  %-46s%s\n' variant states found "what it is"
(
	check "-DRUNNERS=3" nothing "the protocol, one misfortune"
	check "-DRUNNERS=3 -l" nothing "... and every run ends"
	check "-DRUNNERS=2 -DFAULTS=2" nothing "two misfortunes"
	check "-DUNJUDGED" nothing "a person judges the bare statement"
	check "-DNOLOCK -DRUNNERS=2 -l" nothing "no lock: every run ends"
	check "-DOUTSIDE" a-violation "the record outside the migration's transaction"
	check "-DNOCLAIM -DNOLOCK" a-violation "neither claim nor lock"
	check "-DNOCLAIM" a-violation "no claim, and the lock slips"
	check "-DNOCLAIM -DEARLY" a-violation "no claim, compared before the lock only"
	check "-DBLIND" a-violation "taken over from a session that lives"
	check "-DSTALE" a-violation "taken over by the token alone"
	check "-DGUESS" a-violation "a lost answer taken for a COMMIT"
	check "-DUNJUDGED -DUNMARKED" a-violation "a bare statement without a mark"
) &
check "-DNOLOCK" nothing "no lock at all: the claim alone"
wait $!
