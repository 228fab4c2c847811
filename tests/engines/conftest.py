"""The tests of this folder measure: their numbers are shown in the end."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, seconds in report.user_properties:
            terminalreporter.write_line(f"{seconds:6.1f} s {name}: {report.nodeid.partition('::')[2]}")
