"""What a download shows: nothing when there is nothing to fetch, and only on standard error."""

from __future__ import annotations

import io

import pytest

from glassformer.system.progress import shown


def test_a_log_gets_one_line_for_each_thing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(None) as report:
        for done in range(0, 2000, 500):
            report(done, 2000, "fetching x")
        report(0, None, "waiting")
    assert capsys.readouterr() == ("", "fetching x (2.0 kB)\nwaiting\n")


def test_nothing_fetched_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(None):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_callback_is_used_as_it_is() -> None:
    def mine(done: int, total: int | None, what: str) -> None: ...

    with shown(mine) as report:
        assert report is mine


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, fails: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    def work() -> None:
        with shown(None) as report:
            report(500, 2000, "fetching [x]")
            report(2000, 2000, "fetching [x]")
            report(1, None, "unpacking x")
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            work()
    else:
        work()
    text = terminal.getvalue()
    assert "unpacking x" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is given back


def test_no_standard_error(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with shown(None) as report:
        report(0, None, "x")
