"""What asyncpg can neither read nor send: it knows no encoding of texts but UTF-8."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

HINT = "asyncpg reads nothing but UTF-8: leave client_encoding as it is, and look for other encodings in the database"


class UnreadableError(asyncpg.PostgresError):
    """An answer of the server's could not be read: what it is the answer to may have been done, or not.

    The session can be used: asyncpg has passed over all that came before the end of the answer.
    """

    SENTENCE = "the server's answer cannot be read"

    def __init__(self, cause: Exception) -> None:
        answer = cause.object.decode(errors="backslashreplace") if isinstance(cause, UnicodeDecodeError) else cause
        super().__init__(f"{self.SENTENCE}: {answer}")
        self.hint = HINT


@contextmanager
def reading(connection: "asyncpg.Connection[asyncpg.Record]") -> Iterator[None]:
    """Raise UnreadableError for what asyncpg raises inside over an answer; what ends the session stays as it is."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError):
        raise
    except (ValueError, LookupError) as error:
        if connection.is_closed():
            raise
        raise UnreadableError(error) from error


def unsendable(error: BaseException) -> BaseException | None:
    """Return what a closed session's user has raised because it gave asyncpg text that UTF-8 cannot hold.

    asyncpg closes the session over that. None where the session was lost in any other way.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    if not isinstance(chain[-1], UnicodeError):
        return None
    # transaction() raises one in the place of what has passed through it.
    return next(each for each in chain if not isinstance(each, asyncpg.InterfaceError))
