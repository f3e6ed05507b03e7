"""The command line as a person meets it: help, exit codes, errors in one line."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

from glassformer.cli import app as cli
from glassformer.errors import GlassformerError, TextError, UsageError

VERB_ERRORS = [(GlassformerError("Broken."), 1), (UsageError("Cannot be meant."), 2), (KeyboardInterrupt(), 130)]


def run(*args: str, stdin: bytes | None = None, code: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "glassformer"]
    return subprocess.run(
        [*start, *args], input=stdin, capture_output=True, timeout=120, env={**os.environ, "COLUMNS": "100", **env}
    )


def test_every_verb_has_its_file():
    assert cli.verbs()


@pytest.mark.parametrize("name", cli.verbs())
def test_the_table_s_help_is_the_verb_s_own(name):
    command = cli.load_verb(name)
    assert inspect.cleandoc(command.help).splitlines()[0] == cli.VERBS[name].help


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_lines_fit_a_terminal_of_80_columns(name):
    assert len(cli.VERBS[name].help) <= 80 - 6 - max(map(len, cli.VERBS))


@pytest.mark.parametrize("name", cli.verbs())
def test_every_option_is_explained(name):
    for param in cli.load_verb(name).params:
        assert getattr(param, "help", "said"), f"{name}: {param.name} has no help"


WRITERS = ["circuit", "corpus", "direction", "export", "graph", "race", "readout", "report", "site", "train"]
WRITES = ("Write", "Save", "Draw", "Where to", "The file to", "The folder", "The run directory", "Say in it")


@pytest.mark.parametrize("name", cli.verbs())
def test_a_verb_that_writes_a_file_takes_out(name):
    options = [param for param in cli.load_verb(name).params if {"--png", "--html"}.isdisjoint(param.opts)]
    taking = [param for param in options if {"--out", "-o"} <= set(param.opts)]
    assert len(taking) == (name in WRITERS)
    assert name in WRITERS or not [param.opts for param in options if str(param.help or "").startswith(WRITES)]


def test_help_lists_the_verbs():
    done = run("--help")
    assert done.returncode == 0
    for name in cli.verbs():
        assert f"\n  {name}" in done.stdout.decode()
    assert run("-h").stdout == done.stdout


def test_version():
    assert run("--version").stdout.split()[0] == b"glassformer"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nxet"], "No such command 'nxet'. Did you mean 'next'?"),
        (["count", "gpt3", "--cotnext", "3"], "No such option: --cotnext"),
        (["count", "gpt3", "--context", "many"], "Input should be a valid integer"),
        (["count"], "Missing argument"),
    ],
)
def test_usage_errors_exit_2(args, said):
    done = run(*args)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


@pytest.fixture
def failing(monkeypatch):
    """A verb that raises what it is given."""

    def install(error: BaseException) -> None:
        def command() -> None:
            raise error

        module = type(sys)("failing")
        module.command = command
        monkeypatch.setitem(sys.modules, "failing", module)
        monkeypatch.setattr(cli, "verbs", lambda: ["fail"])
        monkeypatch.setitem(cli.VERBS, "fail", cli.Verb("failing:command", "Fail."))

    return install


@pytest.mark.parametrize(("error", "code"), VERB_ERRORS)
def test_errors_become_one_line_and_an_exit_code(failing, capsys, error, code):
    failing(error)
    with pytest.raises(SystemExit) as leave:
        cli.main(["fail"])
    assert leave.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("" if code == 130 else f"glassformer: {error}\n")


def test_an_error_of_several_lines_is_still_one(failing, capsys):
    failing(TextError("First.\nSecond."))
    with pytest.raises(SystemExit):
        cli.main(["fail"])
    assert capsys.readouterr().err == "glassformer: First. Second.\n"


def test_the_system_s_errors_name_the_file(failing, capsys):
    failing(FileNotFoundError(2, "No such file or directory", "there.gguf"))
    with pytest.raises(SystemExit) as leave:
        cli.main(["fail"])
    assert leave.value.code == 1
    assert capsys.readouterr().err == "glassformer: there.gguf: No such file or directory.\n"


def test_a_bug_is_called_one(failing, capsys, monkeypatch):
    monkeypatch.delenv("GLASSFORMER_DEBUG", raising=False)
    failing(ZeroDivisionError("division by zero"))
    with pytest.raises(SystemExit) as leave:
        cli.main(["fail"])
    assert leave.value.code == 1
    assert "This is a bug in Glassformer (ZeroDivisionError: division by zero)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), TextError("x"), OSError(2, "x")])
def test_debug_shows_the_traceback(failing, monkeypatch, error):
    monkeypatch.setenv("GLASSFORMER_DEBUG", "1")
    failing(error)
    with pytest.raises(type(error)):
        cli.main(["fail"])


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'glassformer', 'count', 'gpt3', '--json'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close()\n"
        "sys.stdout.write(p.stderr.read().decode())\n"
        "sys.exit(p.wait())"
    )
    done = run(code=code)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_is_said():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "glassformer", "count", "gpt3", "--json"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"glassformer: ")
    assert done.stderr.endswith(b": No space left on device.\n")
    assert done.stderr.count(b"\n") == 1


def test_python_m_is_the_program():
    assert b"Usage: glassformer" in run("--help").stdout
