"""The Helm chart: lints, renders, is valid for Kubernetes, and keeps its promises about security and roll-outs."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from pkg import config

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "dreamhub"
KUBERNETES = ("1.27", "1.37")
VALUES = {
    "default": {},
    "full": yaml.safe_load((CHART / "ci" / "full-values.yaml").read_text()),
    "models-elsewhere": {"models": {"url": "http://models.shared:8010"}},
}
WARNING = 2
SECRET_NAMES = re.compile(r"DSN|REDIS__URL|TOKEN($|[^S])|SECRET(?!S_DIR)|_KEY$|PASSWORD")
OWN_KEYS = {
    "server": {"app-dsn", "redis-url", "platform-token", "jwt-secret"},
    "worker": {"worker-dsn", "redis-url"},
    "relay": {"relay-dsn", "redis-url"},
    "migrate": {"owner-dsn"},
    "models": set(),
}
OPTIONAL_KEYS = {"ai-api-key", "blobs-access-key", "blobs-secret-key"}
SECRET_VALUE = "postgresql://role:0123456789012345678901234567890123456789@host/dreamhub"
REDIS_URL = "redis://:password@redis:6379/0"

Manifest = dict[str, Any]


def render(values: Manifest) -> list[Manifest]:
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="prod", namespace="search")
    return [item for name, text in files.items() if name.endswith(".yaml") for item in yaml.safe_load_all(text) if item]


@pytest.fixture(params=VALUES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VALUES[request.param])


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["spec"]["template"]


def containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    for pod in pods(manifests):
        assert "initContainers" not in pod["spec"]
        yield from pod["spec"]["containers"]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(item for item in manifests if item["kind"] == kind and item["metadata"]["name"] == name)


def secret_items(pod: Manifest) -> dict[str, tuple[str, bool]]:
    """Key of the Secret → file in the pod, and whether the key must be there."""
    sources = [
        source["secret"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    return {
        item["key"]: (item["path"], not source.get("optional", False)) for source in sources for item in source["items"]
    }


def test_lints_without_a_warning():
    found = helm_python.lint(CHART)
    assert found["errors"] == []
    assert [item for item in found["messages"] if item["severity"] >= WARNING] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_is_valid(manifests: list[Manifest], version: str):
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_names_are_unique_and_short_enough(manifests: list[Manifest]):
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 for _, name in names)


def test_all_processes_are_there():
    manifests = render({})
    commands = {container["name"]: container["args"][0] for container in containers(manifests)}
    assert commands == {
        "server": "serve",
        "worker": "work",
        "relay": "relay",
        "models": "models",
        "migrate": "migrate",
    }
    queues = [
        queue
        for container in containers(manifests)
        if container["name"] == "worker"
        for queue in container["args"][2].split(",")
    ]
    assert sorted(queues) == ["batch", "default", "high_priority", "learning"]


def test_migration_runs_before_everything_else():
    job = one(render({}), "Job", "prod-dreamhub-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # nothing of the release exists yet at that moment
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "default"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_roll_outs_never_take_a_ready_pod_away(manifests: list[Manifest]):
    deployments = [item for item in manifests if item["kind"] == "Deployment"]
    assert deployments
    for deployment in deployments:
        assert deployment["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        }
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        budgets = [
            item
            for item in manifests
            if item["kind"] == "PodDisruptionBudget" and item["spec"]["selector"]["matchLabels"] == selector
        ]
        assert [budget["spec"]["maxUnavailable"] for budget in budgets] == [1]


def test_services_reach_exactly_their_component(manifests: list[Manifest]):
    for service in (item for item in manifests if item["kind"] == "Service"):
        hit = [
            pod for pod in pods(manifests) if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        ]
        assert len(hit) == 1
        assert [port["name"] for port in hit[0]["spec"]["containers"][0]["ports"]] == ["http"]


def test_pods_run_with_the_least_rights(manifests: list[Manifest]):
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        assert all("hostPath" not in volume for volume in spec["volumes"])
    for container in containers(manifests):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")
    account = next(item for item in manifests if item["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_what_is_written_goes_to_bounded_scratch_folders(manifests: list[Manifest]):
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert "/tmp" in mounts
        for mount in mounts.values():
            volume = volumes[mount["name"]]
            assert mount.get("readOnly") or volume["emptyDir"]["sizeLimit"]
        if pod["spec"]["containers"][0]["name"] in ("server", "worker"):
            assert "/var/lib/dreamhub" in mounts


def test_processes_that_listen_are_probed(manifests: list[Manifest]):
    ready = {"server": "/readyz", "models": "/healthz"}
    for container in containers(manifests):
        path = ready.get(container["name"])
        assert ("readinessProbe" in container) == (path is not None)
        if path:
            assert container["readinessProbe"]["httpGet"] == {"path": path, "port": "http"}
            for probe in ("startupProbe", "livenessProbe"):
                assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_each_process_gets_its_own_secrets_as_files_and_no_others(manifests: list[Manifest]):
    for pod in pods(manifests):
        process = pod["spec"]["containers"][0]["name"]
        items = secret_items(pod)
        assert {key for key, (_, required) in items.items() if required} == OWN_KEYS[process]
        optional = {key for key, (_, required) in items.items() if not required}
        assert optional == (OPTIONAL_KEYS if process in ("server", "worker") else set())
        for volume in pod["spec"]["volumes"]:
            if "projected" in volume:
                assert volume["projected"]["defaultMode"] == 0o440


def test_no_secret_is_rendered(manifests: list[Manifest]):
    assert not [item for item in manifests if item["kind"] in ("Secret", "ConfigMap")]
    for container in containers(manifests):
        assert "envFrom" not in container
        for variable in container["env"]:
            assert variable.keys() == {"name", "value"}
            assert not SECRET_NAMES.search(variable["name"]), variable["name"]


@pytest.mark.parametrize(
    "setting",
    [
        "AUTH__JWT_SECRET",
        "AUTH__PLATFORM_TOKEN",
        "DB__DSN",
        "DB__OWNER_DSN",
        "REDIS__URL",
        "AI__API_KEY",
        "BLOBS__ACCESS_KEY",
        "BLOBS__SECRET_KEY",
    ],
)
def test_a_secret_among_the_plain_settings_is_refused(setting: str):
    with pytest.raises(helm_python.HelmError, match=setting):
        render({"config": {setting: "a plain secret"}})


def test_every_secret_of_the_settings_is_refused_in_the_chart():
    """The list above and the schema's pattern know each setting that pydantic hides."""
    for section in config.SECTIONS:
        for name, field in config.Settings.model_fields[section].annotation.model_fields.items():
            if "SecretStr" in str(field.annotation):
                with pytest.raises(helm_python.HelmError):
                    render({"config": {f"{section}__{name}".upper(): "x"}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"config": {"BLOBS__URL": "s3://user:password@host/bucket"}}, "BLOBS__URL"),
        ({"config": {"SERVER__PORT": "1"}}, "SERVER__PORT"),
        ({"secrets": {"existingSecret": ""}}, "existingSecret"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"server": {"replicaCount": 3}}, "replicaCount"),
        ({"workers": [{"name": "all", "queues": ["default"], "replicas": 1}]}, "high_priority"),
        ({"models": {"url": "http://user:password@models"}}, "url"),
        ({"server": {"ingress": {"enabled": True}}}, "at least one host"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: Manifest, words: str):
    with pytest.raises(helm_python.HelmError, match=words):
        render(copy.deepcopy(values))


def test_settings_load_in_every_pod(manifests: list[Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every variable is a setting, every file of a secret is one too, and nothing is missing for production."""
    for pod in pods(manifests):
        container = pod["spec"]["containers"][0]
        name = container["name"]
        with monkeypatch.context() as patch:
            for variable in container["env"]:
                patch.setenv(variable["name"], variable["value"])
            folder = mounted(tmp_path / pod["metadata"]["labels"]["app.kubernetes.io/component"], secret_items(pod))
            if name != "models":
                patch.setenv("DREAMHUB_SECRETS_DIR", str(folder))
            settings = config.load(process=name)
        assert settings.env == "production"
        logins = settings.db.owner_dsn if name == "migrate" else settings.db.dsn
        assert logins.get_secret_value() == ("" if name == "models" else SECRET_VALUE)
        assert settings.models.url
        if name == "server":
            assert settings.server.host == "0.0.0.0"


def mounted(folder: Path, items: dict[str, tuple[str, bool]]) -> Path:
    """A secret's files as the kubelet lays them: links into a folder that is swapped as a whole."""
    real = folder / "..2026_01_01"
    real.mkdir(parents=True)
    (folder / "..data").symlink_to(real.name)
    for path, _ in items.values():
        (real / path).write_text(REDIS_URL if path == "redis__url" else SECRET_VALUE)
        (folder / path).symlink_to(Path("..data") / path)
    return folder
