"""An allow-list of DDL that evaluates no expression, fires no trigger and writes no rows of users.

The server starts now() once for each message, so that only such statements may follow another step in its message. An
unknown statement is not on the list.
"""

import re

from pgratchet.core.model import Script
from pgratchet.core.sql.statements import scan, tokens

_NAME = r'(?:[A-Z_][A-Z0-9_$]*|")'
_NAMES = rf"{_NAME}(?: \. {_NAME})*"
_BODY = r"\( (?:\* )?\)"
_IF = r"(?: IF(?: NOT)? EXISTS)?"
_KIND = r"(?:(?:(?:GLOBAL |LOCAL )?TEMP(?:ORARY)?|UNLOGGED) )?"
_OBJECT = (
    r"(?:TABLE|VIEW|MATERIALIZED VIEW|INDEX|SEQUENCE|TYPE|DOMAIN|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TRIGGER|RULE"
    r"|POLICY|SCHEMA|COLLATION|OPERATOR|CAST|STATISTICS|FOREIGN TABLE)"
)
# Types of pg_catalog only: the domain of a new column may have a default or a check, evaluated for each row.
_TYPE = (
    r"(?:SMALLINT|INT|INTEGER|BIGINT|INT2|INT4|INT8|REAL|FLOAT|FLOAT4|FLOAT8|DOUBLE PRECISION|NUMERIC|DECIMAL|BOOLEAN"
    r"|BOOL|TEXT|VARCHAR|CHAR|CHARACTER(?: VARYING)?|BYTEA|DATE|TIME|TIMESTAMP|TIMESTAMPTZ|INTERVAL|UUID|JSON|JSONB"
    r"|INET|CIDR|TSVECTOR|XML|OID)(?: \( \))?(?: WITH(?:OUT)? TIME ZONE)?(?: \[ (?:[0-9]+ )?\])*"
)
_LITERAL = rf"(?:NULL|TRUE|FALSE|'|(?:[-+] )?[0-9]+(?: \. [0-9]+)?)(?: : : {_TYPE})?"
_REFERENCES = (
    rf"REFERENCES {_NAMES}(?: \( \))?(?: MATCH \w+| ON (?:DELETE|UPDATE) (?:CASCADE|RESTRICT|NO ACTION|SET NULL)"
    r"| (?:NOT )?DEFERRABLE| INITIALLY (?:DEFERRED|IMMEDIATE)| NOT VALID)*"
)
_CONSTRAINED = rf"(?:CONSTRAINT {_NAME} )?(?:NOT NULL|NULL|UNIQUE|PRIMARY KEY|{_REFERENCES})"
_DISTINCT = r"NULLS(?: NOT)? DISTINCT"

_ALTER_TABLE = re.compile(rf"ALTER TABLE{_IF}(?: ONLY)? {_NAMES}(?: \*)? (?P<actions>.*)", re.ASCII)
_ACTIONS = (
    rf"ADD (?:COLUMN )?(?:IF NOT EXISTS )?{_NAME} {_TYPE}(?: {_CONSTRAINED}| DEFAULT {_LITERAL}| COLLATE {_NAMES})*",
    rf"ADD (?:CONSTRAINT {_NAME} )?(?:PRIMARY KEY|UNIQUE(?: {_DISTINCT})?) \( \)(?: INCLUDE \( \))?",
    rf"ADD (?:CONSTRAINT {_NAME} )?(?:PRIMARY KEY|UNIQUE) USING INDEX {_NAME}",
    rf"ADD (?:CONSTRAINT {_NAME} )?FOREIGN KEY \( \) {_REFERENCES}",
    rf"DROP (?:COLUMN |CONSTRAINT )?(?:IF EXISTS )?{_NAME}(?: CASCADE| RESTRICT)?",
    # A default is only stored: that of a new column is evaluated.
    rf"ALTER (?:COLUMN )?{_NAME} (?:SET DEFAULT .+|DROP DEFAULT|(?:SET|DROP) NOT NULL)",
    rf"ALTER (?:COLUMN )?{_NAME} SET (?:STATISTICS (?:- )?\d+|STORAGE \w+)",
    rf"(?:ENABLE|DISABLE)(?: REPLICA| ALWAYS)? (?:TRIGGER|RULE) {_NAME}",
    r"(?:ENABLE|DISABLE|FORCE|NO FORCE) ROW LEVEL SECURITY",
    rf"(?:OWNER TO|SET SCHEMA) {_NAME}",
    rf"RENAME (?:(?:COLUMN |CONSTRAINT )?{_NAME} )?TO {_NAME}",
    rf"REPLICA IDENTITY (?:DEFAULT|FULL|NOTHING|USING INDEX {_NAME})",
    r"(?:SET|RESET) \( \)",
)
_CREATE_TABLE = (
    # Not a partition: its bounds are evaluated, and so are the rows of the default partition.
    rf"CREATE {_KIND}TABLE{_IF} {_NAMES} {_BODY}(?: INHERITS \( \)| USING {_NAME}| WITH \( \)| WITHOUT OIDS"
    rf"| TABLESPACE {_NAME}| ON COMMIT (?:DROP|DELETE ROWS|PRESERVE ROWS)| PARTITION BY \w+ {_BODY})*"
)
_CREATE_INDEX = (
    # Only names of columns: an expression is evaluated for each row.
    rf"CREATE (?:UNIQUE )?INDEX(?:{_IF} {_NAME})? ON (?:ONLY )?{_NAMES}(?: USING {_NAME})? \( \)"
    rf"(?: INCLUDE \( \)| {_DISTINCT}| WITH \( \)| TABLESPACE {_NAME})*"
    rf"(?: WHERE(?: NOT)? {_NAME}(?: IS(?: NOT)? NULL)?)?"
)
_OTHERS = (
    _CREATE_TABLE,
    _CREATE_INDEX,
    rf"CREATE {_KIND}SEQUENCE .*",
    rf"CREATE (?:OR REPLACE )?(?:TEMP(?:ORARY)? )?(?:RECURSIVE )?VIEW {_NAMES} .*",
    rf"CREATE SCHEMA{_IF}(?: {_NAME})?(?: AUTHORIZATION {_NAME})?",
    rf"CREATE TYPE {_NAMES} AS .*",
    rf"CREATE DOMAIN {_NAMES} .*",
    # The validator of another language may run the body.
    r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) (?!.*LANGUAGE (?!(?:PLPGSQL|SQL)\b)).*",
    r"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?TRIGGER .*",
    r"(?:CREATE|ALTER) POLICY .*",
    r"ALTER SEQUENCE .*",
    rf"ALTER TYPE {_NAMES} (?:ADD VALUE .*|RENAME VALUE ' TO ')",
    rf"ALTER {_OBJECT}{_IF} {_NAMES}(?: \( \))? (?:RENAME TO|OWNER TO|SET SCHEMA) {_NAME}",
    rf"DROP {_OBJECT} .*",
    r"(?:ALTER DEFAULT PRIVILEGES|GRANT|REVOKE|COMMENT ON|SET|RESET) .*",
)
_ACTION, _OTHER = "|".join(_ACTIONS), "|".join(_OTHERS)
"""Compiled when they are used: a run of one step does not need them, and they take 10 ms."""

_CLOCK = re.compile(r"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE)
"""Words in a string that is taken for the present time, when the statement is read, where a date is expected."""


def is_inert(script: Script) -> bool:
    """Return whether every statement of a SQL script is on the list."""
    text = script.source.text
    for segment in script.segments:
        if segment.statements == 1:
            if not _is_inert(text, segment.start, segment.end):
                return False
            continue
        part = script.text_of(segment)
        if not all(_is_inert(part, statement.start, statement.end) for statement in scan(part)):
            return False
    return True


def _is_inert(text: str, start: int, end: int) -> bool:
    shape = _shape(text, start, end)
    if shape is None:
        return False
    if table := _ALTER_TABLE.fullmatch(shape):
        return all(re.fullmatch(_ACTION, action, re.ASCII) for action in table["actions"].split(" , "))
    return re.fullmatch(_OTHER, shape, re.ASCII) is not None


def _shape(text: str, start: int, end: int) -> str | None:
    """Return the tokens of a statement in one line; None if a string of it may stand for the present time.

    A name that is quoted, or not ASCII, is `"`. Parentheses are empty, or hold a star if there are others inside.
    """
    words: list[str] = []
    depth, previous = 0, ""
    for lexeme, begin, finish in tokens(text, start, end):
        if lexeme == "'" and not _is_inert_string(words, previous):
            # The text of a string with escapes, or in several pieces, is not its value.
            escaped = text[begin] not in "'$" and "\\" in text[begin:finish]
            if escaped or previous == "'" or _CLOCK.search(text, begin, finish):
                return None
        previous = lexeme
        depth -= lexeme == ")"
        if depth == 0:
            words.append(lexeme if lexeme.isascii() and '"' not in lexeme else '"')
        elif depth == 1 and lexeme == "(" and words[-1] != "*":
            words.append("*")
        depth += lexeme == "("
    return " ".join(words)


def _is_inert_string(words: list[str], previous: str) -> bool:
    """Return whether the string behind these words is a comment, or the body of a function."""
    of_function = words[:1] == ["CREATE"] and ("FUNCTION" in words[:4] or "PROCEDURE" in words[:4])
    return words[:1] == ["COMMENT"] or (of_function and previous == "AS")
