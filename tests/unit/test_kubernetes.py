"""The manifests in deploy/kubernetes, held against the product that they run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from runner.api import health, readiness
from runner.config import Config, load_config
from runner.errors import ConfigError
from runner.storage.roles import roles_sql
from tests.acceptance.deployment import Deployment
from tests.support.documents import Block, commands, read

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
FILE = MANIFESTS / "config" / "runner.yaml"
CERTIFICATE = ROOT / "tests" / "integration" / "tls" / "server.crt"

RUNS, MIGRATES = ("api", "workers"), ("migrate",)
BLOCKED = 3.0  # seconds after which an event loop that is blocked is answered for: docs/decisions/0077


def documents() -> list[dict[str, Any]]:
    """Return every object that the manifests make, but for those that kustomize generates."""
    files = [path for path in sorted(MANIFESTS.rglob("*.yaml")) if path.name != "kustomization.yaml" and path != FILE]
    return [each for path in files for each in yaml.safe_load_all(path.read_text())]


DOCUMENTS = documents()


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in DOCUMENTS if each["kind"] == kind}


@dataclass(frozen=True)
class Pod:
    """A pod that the manifests make, and its one container."""

    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        [container] = self.spec["containers"]
        return cast("dict[str, Any]", container)

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        """The volumes, by the paths at which they are mounted."""
        volumes = {each["name"]: each for each in self.spec["volumes"]}
        return {each["mountPath"]: volumes[each["name"]] for each in self.container["volumeMounts"]}

    @property
    def environment(self) -> dict[str, str]:
        return {each["name"]: each["value"] for each in self.container["env"]}

    @property
    def arguments(self) -> list[str]:
        return list(self.container["args"])

    def selected_by(self, labels: dict[str, str]) -> bool:
        return labels.items() <= self.labels.items()


PODS = {
    each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: Pod(
        each["spec"]["template"]["metadata"]["labels"], each["spec"]["template"]["spec"]
    )
    for each in DOCUMENTS
    if each["kind"] in ("Deployment", "Job")
}


@pytest.fixture(params=PODS)
def pod(request: pytest.FixtureRequest) -> Pod:
    return PODS[request.param]


def named_files() -> set[str]:
    """Return the files that the configuration names."""
    return set(re.findall(r"/run/secrets/[\w./-]+", FILE.read_text()))


def mounted(directory: Path) -> Path:
    """Write what a pod would see below `directory`, each named file with a value, and return the configuration."""
    for name in named_files():
        path = directory / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        value = (
            CERTIFICATE.read_text() if path.suffix == ".crt" else "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3" + path.name
        )
        path.write_text("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3" if path.name == "crm-secret" else value)
    file = directory / "runner.yaml"
    file.write_text(FILE.read_text().replace("/run/secrets/", f"{directory}/run/secrets/"))
    return file


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(mounted(tmp_path_factory.mktemp("mounted")), PODS["workers"].environment)


def test_there_is_what_is_spoken_of() -> None:
    assert set(PODS) == {*RUNS, *MIGRATES}
    assert all(each["spec"]["replicas"] == 2 for each in of_kind("Deployment").values())


def test_the_file_passes_check_as_each_pod_reads_it(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment, its arguments and the files that it mounts, and nothing else."""
    file = mounted(tmp_path)
    for name in named_files():
        assert str(Path(name).parent) in pod.mounts, name
    verb, *options = pod.arguments
    assert verb in ("start", "migrate")
    assert options[options.index("-c") + 1] == "/etc/runner/runner.yaml"
    assert pod.mounts["/etc/runner"]["configMap"] == {"name": "runner"}
    settings = options[options.index("--set") :] if "--set" in options else []
    for variable, value in pod.environment.items():
        monkeypatch.setenv(variable, value)
    _, complaint = Deployment(tmp_path, "").cli("check", "-c", file, *settings)
    assert complaint == ""


def test_each_value_that_is_left_out_is_missed(tmp_path: Path) -> None:
    file = mounted(tmp_path)
    with pytest.raises(ConfigError, match="DATABASE_USER is not set"):
        load_config(file, {})
    for name in sorted(named_files()):
        if name.endswith(".crt"):
            continue  # the DSN names it, and `check` and `start` look for it
        path = tmp_path / name.removeprefix("/")
        moved = path.rename(path.with_suffix(".away"))
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(file, PODS["workers"].environment)
        moved.rename(path)


def test_one_half_serves_and_the_other_delivers(config: Config) -> None:
    assert "worker.enabled=false" in PODS["api"].arguments
    assert config.worker.enabled
    assert "--set" not in PODS["workers"].arguments
    assert all("--watch" in PODS[name].arguments for name in RUNS), "a Secret that changes would not be noticed"


def test_a_stop_has_time_to_drain(config: Config) -> None:
    grace = config.worker.shutdown_grace.total_seconds()
    for name in RUNS:
        spec, lifecycle = PODS[name].spec, PODS[name].container.get("lifecycle", {})
        assert set(lifecycle) <= {"preStop"}
        before = lifecycle["preStop"]["sleep"]["seconds"] if lifecycle else 0
        assert spec["terminationGracePeriodSeconds"] >= before + grace + 5
    assert "preStop" in PODS["api"].container["lifecycle"], "nodes would send it connections after it has ended"


@pytest.mark.parametrize("name", RUNS)
def test_probes_ask_what_there_is_and_wait_for_the_answer(name: str, config: Config) -> None:
    container = PODS[name].container
    assert config.api is not None
    assert container["ports"] == [{"name": "http", "containerPort": config.api.place.port}]
    assert not config.api.place.near
    probes = {each: container[f"{each}Probe"] for each in ("startup", "liveness", "readiness")}
    routes = {cast(Any, each).path for each in health.routes(cast(Any, None))}
    assert {each["httpGet"]["port"] for each in probes.values()} == {"http"}
    paths = {each: probe["httpGet"]["path"] for each, probe in probes.items()}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(paths.values()) == routes
    assert probes["liveness"]["timeoutSeconds"] > BLOCKED
    assert probes["readiness"]["timeoutSeconds"] > readiness._PATIENCE
    patience = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert patience > config.storage.start_timeout.total_seconds()


def test_nothing_has_a_right_it_does_not_need(pod: Pod) -> None:
    [user] = re.findall(r"(?m)^USER (\d+):\1$", (ROOT / "Dockerfile").read_text())
    assert pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["enableServiceLinks"] is False, "RUNNER_… variables of a Service called runner"
    assert pod.spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(user),
        "fsGroup": int(user),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for path, volume in pod.mounts.items():
        [mount] = [each for each in pod.container["volumeMounts"] if each["mountPath"] == path]
        assert mount.get("readOnly") or "emptyDir" in volume, path
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440  # its group is fsGroup


def test_memory_is_what_the_documents_say(pod: Pod) -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "operations.md").read_text())
    [allowed] = re.findall(r"Allow a container (\d+) MiB", text)
    resources = pod.container["resources"]
    assert resources["limits"] == {"memory": f"{allowed}Mi"}
    assert set(resources["requests"]) == {"cpu", "memory"}


def test_selectors_find_their_pods_and_no_others() -> None:
    for name in RUNS:
        labels = of_kind("Deployment")[f"runner-{name}"]["spec"]["selector"]["matchLabels"]
        assert [each for each, pod in PODS.items() if pod.selected_by(labels)] == [name]
        budget = of_kind("PodDisruptionBudget")[f"runner-{name}"]["spec"]
        assert budget["selector"]["matchLabels"] == labels
        assert budget["maxUnavailable"] == 1
        [spread] = PODS[name].spec["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == labels
    service = of_kind("Service")["runner"]["spec"]
    assert [each for each, pod in PODS.items() if pod.selected_by(service["selector"])] == ["api"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]


def test_the_network_lets_through_what_the_file_needs(config: Config) -> None:
    policy = of_kind("NetworkPolicy")["runner"]["spec"]
    assert all(pod.selected_by(policy["podSelector"]["matchLabels"]) for pod in PODS.values())
    open_to = [({each["port"] for each in rule["ports"]}, rule.get("to")) for rule in policy["egress"]]
    [anywhere] = [ports for ports, to in open_to if to is None]
    [nats] = [each.options for each in config.strategies if each.kind == "nats"]
    servers = {int(url.rpartition(":")[2]) for url in cast(Any, nats).servers}
    assert anywhere == {port for _, port in config.storage.dsn.hosts} | servers
    [(webhooks, blocks)] = [(ports, to) for ports, to in open_to if to and "ipBlock" in to[0]]
    assert webhooks == set(config.destinations.ports or ())
    assert "169.254.0.0/16" in blocks[0]["ipBlock"]["except"], "the metadata of the cloud"
    inward = [of_kind("NetworkPolicy")[name]["spec"]["ingress"] for name in ("runner", "runner-api")]
    assert [rule["ports"] for rules in inward for rule in rules] == [[{"port": "http", "protocol": "TCP"}]] * 2


def test_only_the_job_migrates_and_by_a_role_of_its_own(config: Config) -> None:
    assert PODS["migrate"].arguments[0] == "migrate"
    assert all(PODS[name].arguments[0] == "start" for name in RUNS)
    assert not config.storage.migrate
    roles = set(re.findall(r'"(\w+)"', roles_sql(config.storage.schema_name)))
    users = {name: pod.environment["DATABASE_USER"] for name, pod in PODS.items()}
    assert users == {"migrate": "orders_owner", "api": "orders_runner", "workers": "orders_runner"}
    assert set(users.values()) <= roles
    secrets = {name: pod.mounts["/run/secrets/database"]["secret"]["secretName"] for name, pod in PODS.items()}
    assert secrets == {"migrate": "runner-database-owner", "api": "runner-database", "workers": "runner-database"}
    [rule] = of_kind("Job")["runner-migrate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [ConfigError.exit_code]
    assert rule["onExitCodes"]["containerName"] == PODS["migrate"].container["name"]


def test_every_manifest_is_applied() -> None:
    for directory in ("migrate", "run"):
        listed = yaml.safe_load((MANIFESTS / directory / "kustomization.yaml").read_text())["resources"]
        files = {path.name for path in (MANIFESTS / directory).glob("*.yaml")} - {"kustomization.yaml"}
        assert set(listed) == {"../config", *files}
    images = {
        str(yaml.safe_load((MANIFESTS / each / "kustomization.yaml").read_text())["images"])
        for each in ("migrate", "run")
    }
    assert len(images) == 1, "one version migrates, and another one runs"


def told() -> list[Block]:
    """Return the blocks of deployment.md that need a cluster."""
    return [each for each in read(ROOT / "docs" / "deployment.md") if "test_kubernetes" in each.notes.get("run by", "")]


def test_the_secrets_of_the_document_have_every_file() -> None:
    made = {}
    for command in commands(told()[0]):
        name, *files = shlex.split(command.line.partition(" generic ")[2])
        made[name] = {each.removeprefix("--from-file=").partition("=")[0] for each in files}
    for pod in PODS.values():
        for path, volume in pod.mounts.items():
            if "secret" in volume:
                named = {Path(each).name for each in named_files() if str(Path(each).parent) == path}
                assert made[volume["secret"]["secretName"]] == named


def test_the_commands_of_the_document_name_what_there_is() -> None:
    lines = [shlex.split(each.line)[1:] for each in commands(told()[1])]
    assert [words[0] for words in lines] == ["delete", "apply", "wait", "apply", "rollout", "exec"]
    directories = [words[words.index("-k") + 1] for words in lines if "-k" in words]
    assert directories == [str((MANIFESTS / each).relative_to(ROOT)) for each in ("migrate", "run")]
    named = {word for words in lines for word in words if word.startswith(("job/", "deployment/"))}
    there = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in DOCUMENTS}
    assert named <= there
    assert lines[0][1:3] == ["job", "runner-migrate"]
    assert lines[-1][-2:] == ["-c", PODS["workers"].arguments[PODS["workers"].arguments.index("-c") + 1]]


def test_prometheus_finds_the_pods(tmp_path: Path) -> None:
    [scraping] = [each for each in told() if each.language == "yaml"]
    [job] = yaml.safe_load(scraping.text)["scrape_configs"]
    assert job["job_name"] == "runner"  # so do the alerts call it
    kept = {
        tuple(each["source_labels"]): each["regex"] for each in job["relabel_configs"] if each.get("action") == "keep"
    }
    label, port = (
        ("__meta_kubernetes_pod_label_app_kubernetes_io_name",),
        ("__meta_kubernetes_pod_container_port_name",),
    )
    assert set(kept) == {label, port}
    for name in RUNS:
        assert PODS[name].labels["app.kubernetes.io/name"] == kept[label]
        assert [each["name"] for each in PODS[name].container["ports"]] == [kept[port]]
    if shutil.which("promtool"):
        (tmp_path / "token").write_text("t")
        # Debian builds it without the discovery of Kubernetes.
        text = re.sub(r"kubernetes_sd_configs: .*", "static_configs: [{targets: [h]}]", scraping.text)
        text = text.replace("/etc/prometheus/runner-token", str(tmp_path / "token"))
        (tmp_path / "prometheus.yml").write_text(text)
        shutil.copy(ROOT / "deploy" / "alerts.yaml", tmp_path)
        command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def built() -> Iterator[dict[str, Any]]:
    """Yield every object as kustomize makes it."""
    for directory in ("migrate", "run"):
        done = subprocess.run(
            ["kubectl", "kustomize", MANIFESTS / directory], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        yield from yaml.safe_load_all(done.stdout)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_kustomize_puts_them_together() -> None:
    objects = list(built())
    [name] = {each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"}
    assert re.fullmatch(r"runner-\w{10}", name)
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]
    assert len(pods) == 3
    for spec in pods:
        assert {each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each} == {name}
        [image] = [each["image"] for each in spec["containers"]]
        assert re.fullmatch(r"registry\.example/eventbus-runner:\d+\.\d+\.\d+", image)


def test_they_fit_the_schema_of_kubernetes() -> None:
    """Each field is known, of its type, and not missing: 1.31, the first with all of them, and the newest."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make manifests installs it")
    for version in ("1.31", kubernetes_validate.latest_version()):
        for each in DOCUMENTS:
            kubernetes_validate.validate(each, version, strict=True)
