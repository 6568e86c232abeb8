"""What the README and its neighbours say is true: commands run, code prints what it says, what is named exists."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
from serving import ROOT, environment, eventually
from test_cli import Shell

from ledger import embedded
from ledger.cli import app
from ledger.settings import Settings
from ledger.status import STATUS

README: Final = (ROOT / "README.md").read_text()
MAKEFILE: Final = (ROOT / "Makefile").read_text()
DOCUMENTS: Final = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / ".env.example",
    ROOT / "docker-compose.yml",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def options_of(command: Any) -> set[str]:
    """The options of a command, and of all below it."""
    below = (options_of(each) for each in getattr(command, "commands", {}).values())
    own = (option for each in command.params for option in (*each.opts, *each.secondary_opts))
    return {"--help", *own}.union(*below)


TARGETS: Final = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
OPTIONS: Final = options_of(typer.main.get_command(app))
COMMANDS: Final = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


CONSOLE: Final = [line for block in blocks("console") for line in block.splitlines()]
SHELL_COMMANDS: Final = [line.removeprefix("$ ") for line in CONSOLE if line.startswith("$ ")]


AUDITS: Final = ("audit public-key", "audit verify", "audit export", "audit check")

(LIFE,) = (block for block in blocks("console") if "$ ledger payment" in block)
"""A payment's life, from the shell."""


def command_with(words: str) -> str:
    """The README's one command with these words in it."""
    (found,) = [each for each in SHELL_COMMANDS if words in each]
    return found


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


# --- what the README shows, run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """`make demo` runs this. It is started before the other tests here, and takes its time beside them."""
    folder = tmp_path_factory.mktemp("demo")
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ledger"), "demo"], cwd=folder, env=environment(), stdout=out, stderr=out
        )
    process.output = folder / "out"  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, demo: subprocess.Popen[str]) -> Path:
    """A folder as a clone of the repository is after `make setup`, with a file for each that the README names."""
    place = tmp_path_factory.mktemp("place")
    (place / ".venv").symlink_to(Path(sys.executable).parents[1])
    (place / "accounts.csv").write_text(
        "account_id,currency,kind,credit_limit\nbank-2,EUR,external,\ncarol,EUR,customer,10.00\n"
    )
    (place / "movements.csv").write_text(
        "id,effective_at,kind,from_account,to_account,amount,reference\n"
        "m1,2024-01-31T12:00:00Z,transfer,bank-2,carol,12.50,salary\n"
        "m2,2024-02-01T12:00:00Z,payment,carol,bank-2,20.00,rent\n"
    )
    return place


def steps(life: str) -> list[tuple[str, str]]:
    """The commands of a life, each with what it prints."""
    return [(command, masked(printed)) for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", life, re.M)]


def masked(printed: str) -> str:
    """Without what is another in every run."""
    known = re.sub(r"\b(ref)-[0-9a-f]{8}\b", r"\1-made", re.sub(r"\b20[0-9T:.-]+Z", "TIME", printed))
    return "\n".join(" ".join(re.sub("─+", "─", line).split()) for line in known.splitlines()).strip()


class Shown:
    """Runs commands of the README, with the server's port in the place of its usual one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        # Where there is no psql, that of the embedded Postgres does.
        self._env = environment() | {"PATH": f"{os.environ['PATH']}:{embedded.binaries()}", "PAGER": "cat"}
        self.out = place / "serve.out"
        with self.out.open("w") as out, (place / "serve.err").open("w") as err:
            self.server = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command_with('ledger serve')}"],
                cwd=place,
                env=self._env | {"LEDGER_LISTEN": "127.0.0.1:0"},
                stdout=out,
                stderr=err,
            )
        eventually(lambda: "\n" in self.out.read_text() or self.server.poll() is not None)
        self.address = self.out.read_text().split()[3]
        self.life = ""

    def live(self, shell: Shell) -> None:
        """Go through a payment's life, as a person at a terminal, who sees both streams."""
        for command, _ in steps(LIFE):
            ended = shell(*shlex.split(command)[1:], LEDGER_SERVER=self.address)
            self.life += f"$ {command}\n{ended.err}{ended.out}\n"

    def run(self, *command: str) -> str:
        """What a command prints, which has to end well."""
        command = tuple(each.replace("127.0.0.1:50051", self.address) for each in command)
        done = subprocess.run(command, cwd=self.place, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, line: str) -> str:
        return self.run("/bin/sh", "-c", line)

    def ends_well(self, line: str) -> bool:
        command = ["/bin/sh", "-c", line]
        return subprocess.run(command, cwd=self.place, env=self._env, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def shown(place: Path) -> Iterator[Shown]:
    """The server that the README starts, after the payment's life, whose positions are those of a new ledger.

    At the end it gets Ctrl-C, and has to exit with 0.
    """
    shown = Shown(place)
    shell = Shell(place)
    shown.live(shell)
    shell.close()
    yield shown
    shown.server.send_signal(signal.SIGINT)
    assert shown.server.wait(15) == 0


def test_every_command_is_one_that_a_test_runs() -> None:
    """A command that is added to the README needs a test here. `make test` is what runs this one."""
    assert set(SHELL_COMMANDS) == {
        "make demo",
        "make test",
        "make setup",
        *(command_with(f".venv/bin/ledger {name}") for name in ("serve", "dsn", "import", *AUDITS)),
        *(command for command, _ in steps(LIFE)),
    }


def test_the_server_says_what_the_readme_shows(shown: Shown) -> None:
    """The line after the command, but for the port."""
    after = CONSOLE[CONSOLE.index(f"$ {command_with('ledger serve')}") + 1]

    assert shown.out.read_text() == after.replace("127.0.0.1:50051", shown.address) + "\n"


def test_a_payment_s_life_is_as_the_readme_shows_it(shown: Shown) -> None:
    """Every command, with all that it prints."""
    assert len(steps(LIFE)) > 10
    assert steps(shown.life) == steps(LIFE)


def test_the_client_prints_what_its_comment_says(shown: Shown) -> None:
    """The README's client, as it stands there, against the server that the README starts."""
    client = blocks("python")[-1]
    promised = re.findall(r"^print\(.*\)  # (.*)$", client, re.MULTILINE)

    assert promised
    assert shown.run(sys.executable, "-c", client).splitlines() == promised
    assert shown.run(sys.executable, "-c", client).splitlines() == promised  # ids are idempotency keys


def test_the_client_is_checked_by_the_types_that_come_along(tmp_path: Path) -> None:
    """Where the ledger is installed, as whoever writes a client has it, and not the folder that mypy is started in."""
    venv.create(tmp_path / "venv", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    (packages / "ledger").symlink_to(ROOT / "ledger")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "client.py").write_text(blocks("python")[-1])
    python = tmp_path / "venv" / "bin" / "python"
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "client.py"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": "", "MYPY_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == "Success: no issues found in 1 source file\n", checked.stdout + checked.stderr


def test_psql_shows_the_balances(shown: Shown) -> None:
    """After the import, so that there are some."""
    said = shown.shell(command_with("ledger import"))
    assert "Traceback" not in said
    table = shown.shell(command_with("psql"))

    assert "carol" in table
    assert re.search(r"carol +\| CUSTOMER .*\| +-750 \|", table), table


def test_auditors_are_given_the_key_that_heads_are_signed_with(shown: Shown) -> None:
    """In the form of signed notes."""
    assert re.fullmatch(r"ledger/main\+[0-9a-f]{8}\+[\w+/=]+\n", shown.shell(command_with("ledger audit public-key")))


def test_the_history_is_verified_beside_the_server(shown: Shown) -> None:
    """All of it, with what the server has signed meanwhile."""
    assert shown.shell(command_with("ledger audit verify")).startswith("ledger main is sound: ")


def test_the_history_is_taken_home_and_checked_there(shown: Shown) -> None:
    """As soon as something was signed: with the export that the README shows, and then the check."""
    shown.shell(command_with("ledger import"))
    eventually(lambda: shown.ends_well(command_with("ledger audit export")))

    assert "Verified." in shown.shell(command_with("ledger audit check"))


def test_the_first_look_at_the_code_is_the_first_test_of_accounts() -> None:
    """Word for word."""
    source = (ROOT / "tests" / "unit" / "test_account.py").read_text()
    first = next(
        each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    )
    start = min([first.lineno, *(each.lineno for each in first.decorator_list)])
    text = "\n".join(source.splitlines()[start - 1 : first.end_lineno])

    assert blocks("python")[0].strip() == text.strip()


def test_the_demo_runs_to_its_end(demo: subprocess.Popen[str]) -> None:
    """It shows accounts, payments and events, agrees with itself, and leaves nothing running."""
    assert re.search(r"^\s*@?.*\bledger demo$", make("-n", "demo"), re.MULTILINE)

    code = demo.wait(120)
    output = demo.output.read_text()  # type: ignore[attr-defined]

    assert code == 0, output
    assert "Traceback" not in output
    for words in ("The accounts", "A payment of each kind", "PaymentAuthorized", "agree", "has stopped"):
        assert words in output


# --- what is named exists --------------------------------------------------------------------------------------------


def test_the_table_of_commands_is_that_of_the_help() -> None:
    """All of them, and no other."""
    command = [Path(sys.executable).with_name("ledger"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^│ ([a-z]+) ", shown, re.MULTILINE))

    assert set(re.findall(r"^\| `ledger ([a-z]+)` \|", README, re.MULTILINE)) == listed == COMMANDS


def test_make_help_lists_every_target() -> None:
    """With a line that says what it does; and what documents call a target is one."""
    listed = dict(re.findall(r"^ +make ([a-z-]+) +(\S.*)$", make("help"), re.MULTILINE))

    assert set(listed) == TARGETS
    assert set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()) == TARGETS
    for document in [*DOCUMENTS, ROOT / ".ci" / "run"]:
        named = set(re.findall(r"(?:`|\$ |^)make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert named <= TARGETS, document
    assert {"demo", "test", "run", "lint", "setup", "proto", "help"} <= TARGETS


def test_ci_runs_what_the_readme_says() -> None:
    """Lint, and the README's test command."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "make lint" in script
    assert command_with("make test") in script


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_and_options_that_are_named_exist(document: Path) -> None:
    """Settings in the environment, and flags of `ledger`."""
    text = document.read_text()
    settings = {f"LEDGER_{name.upper()}" for name in Settings.model_fields}
    not_of_ledger = {"LEDGER_TEST_DSN"}  # of the tests
    reasons = set(STATUS)  # of refusals: LEDGER_NOT_FOUND

    assert set(re.findall(r"\bLEDGER_[A-Z_]*[A-Z]\b", text)) - {"LEDGER_"} <= settings | not_of_ledger | reasons
    lines = [line for line in text.splitlines() if re.search(r"\bledger (?:[a-z]+ )?", line)]
    named = {option for line in lines for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert named <= OPTIONS | {"--data-checksums"}


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each.suffix == ".md"], ids=lambda path: path.name)
def test_files_that_are_linked_exist(document: Path) -> None:
    """Links within the repository."""
    for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_folders_that_the_readme_lists_exist() -> None:
    """In the table of the layout."""
    folders = re.findall(r"^\| `([\w/]+)` \|", README, re.MULTILINE)
    assert folders
    assert not [each for each in folders if not (ROOT / each).is_dir()]


def test_nothing_is_left_to_be_filled_in() -> None:
    """No placeholder."""
    assert not re.findall(r"^[A-Z_]{5,}$", README, re.MULTILINE)


def test_the_try_out_with_tls_and_a_token_works(place: Path) -> None:
    """The four lines, in a folder that has a ledger: the last is answered over TLS, to that token."""
    (lines,) = (block.splitlines() for block in blocks("sh"))
    certificates, token, serve, ask = lines
    env = environment() | {"LEDGER_LISTEN": "127.0.0.1:0"}

    def run(command: str, **settings: str) -> str:
        shell = ["/bin/sh", "-c", command]
        return subprocess.run(shell, cwd=folder, env=env | settings, capture_output=True, text=True, check=True).stdout

    folder = place / "others"
    folder.mkdir()
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    run(".venv/bin/ledger migrate --data-dir .data")
    run(certificates)
    run(token)
    with (
        (folder / "err").open("w") as err,
        subprocess.Popen(
            ["/bin/sh", "-c", f"{serve.replace('.venv', 'exec .venv')}"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        ) as server,
    ):
        try:
            assert server.stdout
            ready = server.stdout.readline()
            assert ready.endswith(", TLS, tokens)\n"), (folder / "err").read_text()
            address = ready.split()[3]
            assert "payment" in run(ask, LEDGER_SERVER=address)
            with pytest.raises(subprocess.CalledProcessError) as refused:
                run(ask.replace("shop.token", "/dev/null"), LEDGER_SERVER=address)
            assert "UNAUTHENTICATED" in refused.value.stderr
        finally:
            server.terminate()
    assert server.returncode == 0
