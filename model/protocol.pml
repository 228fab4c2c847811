/* The protocol of `pgratchet up`: runners that start at once, crash and lose their sessions, and still apply each
 * migration exactly once. README.md says what is modelled and what is not; check.sh runs it.
 *
 * Three migrations: 1 and 3 are transactional, 2 runs statement by statement: first one that is committed together
 * with its count, then a bare one. A session is a server process; its number is never used again and stands for
 * pid and backend_start, and for the token of what is claimed in it.
 *
 * The changes of a row's state have the names of src/pgratchet/postgres/ledger/transitions.py. Not modelled: fail,
 * revert, resume revert, remove, settle as applied, settle as not applied, adopt.
 *
 * Good:    (none)    the lock of a session, which may slip from it (a script that unlocks)
 *          UNJUDGED  no look-up tells whether the bare statement took effect: a person does
 *          NOLOCK    no lock at all, as behind some poolers; every migration is transactional
 * Broken:  OUTSIDE, NOCLAIM, EARLY, BLIND, STALE, GUESS, UNMARKED, KEPT: each is described at its place
 */
#ifndef FAULTS
#define FAULTS   1
#endif
#ifndef RUNNERS
#define RUNNERS  3
#endif
#define SESSIONS (RUNNERS * (FAULTS + 1))
#define NOBODY   SESSIONS
#define NEWEST   3
#ifdef NOLOCK
#define in_one_transaction(m) true
#define is_free true
#define holds(s) true
#define take(s) skip
#define TO_CLAIM PLANNED
#else
#define in_one_transaction(m) (m != 2)
#define is_free (lock == NOBODY)
#define holds(s) (lock == s)
#define take(s) lock = s
#define TO_CLAIM WHOLE
#endif

mtype:state = { ABSENT, RUNNING, APPLIED };
mtype:request = { NOTHING, WHOLE, PLANNED, CLAIMED, CHECKED, UNRECORDED,
	CLAIM, TOGETHER, MARK, COUNT, CLOSE, BARE, BUILDING };
mtype:answer = { SILENCE, DONE, TAKEN, MOVED, REFUSED };
mtype:index = { MISSING, INVALID, VALID };

/* The database. Others do not see an uncommitted write, but wait for it: `writer` has the row, or its key. */
mtype:state state[NEWEST + 1] = ABSENT;
byte token[NEWEST + 1] = NOBODY;
byte writer[NEWEST + 1] = NOBODY;
byte counted;                    /* statements of 2 */
bool begun;                      /* the mark at the one after them */
byte effect[NEWEST + 1];         /* how often a transactional migration took effect */
byte together, bare;             /* how often the statements of 2 did */
mtype:index index = MISSING;     /* the result of a look-up of the bare one */
byte lock = NOBODY;

/* The sessions: which of them live, which have a client, and the messages on the wire. */
bool alive[SESSIONS], linked[SESSIONS];
mtype:request asked[SESSIONS] = NOTHING;
mtype:answer answered[SESSIONS] = SILENCE;
byte about[SESSIONS], old[SESSIONS], seen[SESSIONS];
bool marked[SESSIONS];

byte session_of[RUNNERS];
byte faults = FAULTS;

inline forget(s) { asked[s] = NOTHING; about[s] = 0; old[s] = 0; seen[s] = 0; marked[s] = false }

inline die(s)                    /* an uncommitted write is rolled back, and the lock is free */
{
	d_step {
		alive[s] = false; linked[s] = false; forget(s);
#ifndef KEPT                     /* a lock that is a row of a table, say: no process frees it */
		if :: lock == s -> lock = NOBODY :: else fi;
#endif
		if :: writer[1] == s -> writer[1] = NOBODY :: else fi;
		if :: writer[2] == s -> writer[2] = NOBODY :: else fi;
		if :: writer[3] == s -> writer[3] = NOBODY :: else fi
	}
}

#define me _pid
#define it about[me]

inline tell(what)
{
	if :: writer[it] == me -> writer[it] = NOBODY :: else fi;
	if :: linked[me] -> answered[me] = what :: else fi;
	forget(me)
}

#ifdef STALE                     /* to resume by the token alone, without a look at later marks and counts */
#define as_read (state[2] == RUNNING && token[2] == old[me])
#else
#define as_read (state[2] == RUNNING && token[2] == old[me] && counted == seen[me] && begun == marked[me])
#endif
#define as_planned (state[it] == ABSENT && (it == 1 || state[it - 1] == APPLIED))
#define mine(n) (token[2] == me && counted == n)
#define updates (asked[me] == CLAIM || asked[me] == TOGETHER || asked[me] == MARK || asked[me] == COUNT || asked[me] == CLOSE)
#define may_update (holds(me) && ( \
	(asked[me] == CLAIM && (old[me] == NOBODY -> state[2] == ABSENT : as_read)) || \
	(asked[me] == TOGETHER && mine(0)) || \
	((asked[me] == MARK || asked[me] == COUNT) && mine(1)) || \
	(asked[me] == CLOSE && mine(2))))

inline commit()
{
	if
	:: asked[me] == CLAIM ->         /* transition: claim */ /* transition: resume */
		state[2] = RUNNING; token[2] = me; counted = seen[me]; assert(state[1] == APPLIED)
	:: asked[me] == TOGETHER -> together++; assert(together <= 1); counted = 1
	:: asked[me] == MARK -> begun = true
	:: asked[me] == COUNT -> counted = 2; begun = false
	:: asked[me] == CLOSE ->         /* transition: record */
		state[2] = APPLIED; assert(together == 1 && bare == 1)
	fi
}

/* A server process: one step of what it is asked at a time, until it notices that it has no client, which may be
 * before any step. A claim or UPDATE waits for another writer of the row, and sees what that has committed. */
active [SESSIONS] proctype Session()
{
end:	do
	:: atomic { alive[me] && !linked[me] -> die(me) }
#ifdef NOLOCK                    /* a statement of its own: are the applied versions still those of the plan? */
	:: atomic { asked[me] == WHOLE -> if :: as_planned -> asked[me] = PLANNED :: else -> tell(MOVED) fi }
#endif
#ifdef NOCLAIM                   /* the record is no key, and is written last */
	:: atomic { asked[me] == TO_CLAIM -> asked[me] = CLAIMED }
#else
	:: atomic { asked[me] == TO_CLAIM && writer[it] == NOBODY ->   /* transition: claim */
		if :: state[it] == ABSENT -> writer[it] = me; asked[me] = CLAIMED :: else -> tell(TAKEN) fi }
#endif
	:: atomic { asked[me] == CLAIMED -> if :: holds(me) -> asked[me] = CHECKED :: else -> tell(REFUSED) fi }
	:: atomic { asked[me] == CHECKED ->
		effect[it]++; assert(effect[it] <= 1);
		assert(it == 1 || state[it - 1] == APPLIED);
#ifdef OUTSIDE                   /* the record is a transaction of its own, after the migration's */
		asked[me] = UNRECORDED }
	:: atomic { asked[me] == UNRECORDED ->
#endif
		state[it] = APPLIED; token[it] = me; tell(DONE) }      /* transition: record */
	:: atomic { updates && writer[2] == NOBODY ->
		if :: may_update -> writer[2] = me :: else -> tell(REFUSED) fi }
	:: atomic { updates && writer[2] == me -> commit(); tell(DONE) }
	:: atomic { asked[me] == BARE -> index = INVALID; asked[me] = BUILDING }
	:: atomic { asked[me] == BUILDING -> bare++; assert(bare <= 1); index = VALID; tell(DONE) }
	od
}

#define all_applied (state[files] == APPLIED)   /* in order, as commit() asserts: then all earlier ones are applied too */
#define on (linked[s])

inline unread() { owner = NOBODY; done = 0; doubt = false }

/* Read the history, as far as this image knows its versions, in one statement. */
inline look()
{
	m = 1;
	do
	:: m <= files && state[m] == APPLIED -> m++
	:: else -> break
	od;
	if
	:: m == 2 && state[2] == RUNNING -> owner = token[2]; done = counted; doubt = begun
	:: else -> unread()
	fi
}

/* Each version is reported once; the token is not needed afterwards. */
inline report(n) { assert(token[n] == sign); token[n] = NOBODY; flying = 0; sign = NOBODY }

/* Find out whether the step whose answer was lost is done: its row has the token. */
inline resolve()
{
	if
	:: flying != 0 && state[flying] == APPLIED && token[flying] == sign -> report(flying)
	:: else -> flying = 0; sign = NOBODY
	fi
}

inline ask(request)
{
	if :: on -> asked[s] = request; about[s] = m :: else -> goto lost fi;
	if                       /* an answer that has been sent may still be lost */
	:: answered[s] != SILENCE -> reply = answered[s]; answered[s] = SILENCE
	:: !on -> goto lost
	fi
}

inline write_or_fail(request) { ask(request); if :: reply == DONE :: else -> goto failed fi }

active [RUNNERS] proctype Runner()
{
	byte r, files, tries, s, m, owner = NOBODY, done, flying, sign = NOBODY;
	bool doubt;
	mtype:answer reply = SILENCE;

	d_step { r = _pid - SESSIONS; files = (r == RUNNERS - 1 -> 2 : NEWEST) };
connect:
	atomic {                 /* and look at the history: most starts end here */
		assert(tries <= FAULTS);
		s = r * (FAULTS + 1) + tries; tries++;
		session_of[r] = s; alive[s] = true; linked[s] = true;
#ifdef EARLY                     /* the look without the lock decides */
		look();
#endif
	};
wait:	if                       /* for the lock, or until others have done it all */
	:: atomic { on && all_applied -> resolve(); goto success }
	:: atomic { on && is_free -> take(s) }
	:: atomic { !on -> goto lost }
	fi;
compare: /* under the lock: only this decides */
	if
	:: atomic { on ->
#ifndef EARLY
		look();
#endif
#ifdef GUESS                     /* a step whose answer was lost counts as done */
		if :: flying == m -> m++ :: else fi;
		flying = 0
#else
		resolve()
#endif
		}
	:: atomic { !on -> goto lost }
	fi;
#if !defined(NOLOCK) && !defined(BLIND)   /* BLIND: the runner of the resumed row may still be at work */
	if
	:: on && (owner == NOBODY || !alive[owner])
	:: on && owner != NOBODY && alive[owner] -> (!on || !alive[owner]) -> goto compare
	:: atomic { !on -> goto lost }
	fi;
#endif
	atomic {
#ifdef UNJUDGED                  /* a person looks at the database, and says --skip or --again for the row as shown */
		if
		:: doubt ->
			if :: begun && token[2] == owner -> counted = counted + bare; begun = false :: else fi;
			goto compare
		:: else
		fi;
#endif
		do
		:: m > files -> goto success
		:: m <= files && in_one_transaction(m) ->
			flying = m; sign = s;
			ask(WHOLE);
			if
			:: reply == DONE -> report(m); m++
			:: reply == TAKEN -> goto compare
			:: reply == MOVED -> goto wait
			:: reply == REFUSED -> goto failed
			fi
		:: m <= files && !in_one_transaction(m) ->
			flying = m; sign = s; old[s] = owner; seen[s] = done; marked[s] = doubt;
			write_or_fail(CLAIM);
			if :: done == 0 -> write_or_fail(TOGETHER); done = 1 :: else fi;
			if
			:: done == 1 ->
#ifndef UNMARKED                 /* no mark says that it was begun: a run that resumes runs it again */
				write_or_fail(MARK);
#endif
				if :: doubt && index == VALID :: else -> write_or_fail(BARE) fi;
				write_or_fail(COUNT)
			:: else
			fi;
			write_or_fail(CLOSE);
			report(m); m++; unread()
		od
	};
failed:	atomic { die(s); flying = 0; sign = NOBODY };
lost:	atomic {                 /* this run goes on; or its process is started again, and knows nothing; or it is never started again */
		answered[s] = SILENCE; m = 0; unread(); reply = SILENCE;
		if
		:: true
		:: flying = 0; sign = NOBODY
		:: flying = 0; sign = NOBODY; goto over
		fi;
		goto connect
	};
success:
	atomic {
		die(s); m = 0; unread(); reply = SILENCE;
		assert(state[1] == APPLIED && effect[1] == 1 && state[2] == APPLIED);
		assert(files < NEWEST || state[NEWEST] == APPLIED && effect[NEWEST] == 1)
	};
over:	atomic { s = 0; tries = 0; session_of[r] = 0 }
}

#define CUT(r) :: atomic { faults > 0 && linked[session_of[r]] -> faults--; linked[session_of[r]] = false }

/* A connection is cut, or its runner killed; the server is started anew; the lock slips. A session that is killed is
 * one that is cut and notices at once. Nothing more may happen at any time: then nobody may wait for help. */
active proctype Misfortune()
{
	byte s;
end:	do
	CUT(0)
	CUT(1)
#if RUNNERS > 2
	CUT(2)
#endif
	:: d_step { faults > 0 -> faults--;
		for (s : 0 .. SESSIONS - 1) { if :: alive[s] -> die(s) :: else fi };
		s = 0 }
	:: atomic { faults > 0 && lock != NOBODY -> faults--; lock = NOBODY }
	:: atomic { faults > 0 -> faults = 0 }
	od
}
