"""What is in deploy/ fits the service: paths, settings, times and sizes."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from galen.config import Settings
from inference.app import create_app
from inference.settings import InferenceSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "systemd" / "galen-inference.service"
# What the cluster's own API describes; the schemas of others are not at hand, patches are no whole.
BUILT_IN = {"v1", "apps/v1", "policy/v1"}
PATCHES = {KUBERNETES / "overlays" / "gpu" / "deployment.yaml"}
MANIFESTS = sorted(
    path
    for path in {*KUBERNETES.rglob("*.yaml")} - PATCHES
    if yaml.safe_load(path.read_text(encoding="utf-8"))["apiVersion"] in BUILT_IN
)
OLDEST_CLUSTER = "1.30"  # the first with preStop.sleep
END_OF_WORKERS_SECONDS = 5.0


def _load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _settings(path):
    with path.open("rb") as file:
        return Settings(**tomllib.load(file)).inference


def _merged(patch, base):
    """Merge as Kubernetes does it: lists of named things by name, all else replaced."""
    if isinstance(patch, dict) and isinstance(base, dict):
        return {**base, **{key: _merged(value, base.get(key)) for key, value in patch.items()}}
    if isinstance(patch, list) and isinstance(base, list):
        key = next((k for k in ("mountPath", "name") if all(k in item for item in patch)), None)
        if key:
            known = {item[key]: item for item in base}
            merged = {item[key]: _merged(item, known.get(item[key])) for item in patch}
            return list({**known, **merged}.values())
    return patch


BASE = _load(KUBERNETES / "base" / "deployment.yaml")
GPU = _merged(_load(KUBERNETES / "overlays" / "gpu" / "deployment.yaml"), BASE)
VARIANTS = [
    pytest.param(BASE, KUBERNETES / "base" / "galen.toml", id="base"),
    pytest.param(GPU, KUBERNETES / "overlays" / "gpu" / "galen.toml", id="gpu"),
]


def _container(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def _bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)([KMG]i)?", quantity).groups()
    return int(number) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: str(p.relative_to(KUBERNETES)))
def test_manifests_fit_the_schemas_of_kubernetes(path):
    manifest = _load(path)
    if manifest["kind"] == "Deployment":
        # Kustomize adds the selector and its labels.
        labels = {"app.kubernetes.io/name": "galen-inference"}
        manifest["spec"]["selector"] = {"matchLabels": labels}
        manifest["spec"]["template"]["metadata"]["labels"] = labels
    kubernetes_validate.validate(manifest, OLDEST_CLUSTER, strict=True)


def test_the_schemas_refuse_what_is_wrong():
    wrong = _load(KUBERNETES / "base" / "service.yaml")
    wrong["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST_CLUSTER, strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_kustomize_builds_valid_manifests(folder):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; the merge is tested without it too")
    built = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / folder)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    documents = list(yaml.safe_load_all(built.stdout))
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"} <= {
        document["kind"] for document in documents
    }
    for document in documents:
        if document["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(document, OLDEST_CLUSTER, strict=True)


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_probes_ask_for_paths_that_exist(deployment, settings, tmp_path):
    app = create_app(InferenceSettings(state_dir=tmp_path))
    paths = set(app._rest.openapi()["paths"])
    container = _container(deployment)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[name]["httpGet"] for name in
              ("startupProbe", "livenessProbe", "readinessProbe")}  # fmt: skip
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/health/startup",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    assert {probe["path"] for probe in probes.values()} <= paths
    assert {ports[probe["port"]] for probe in probes.values()} == {_settings(settings).port}


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_startup_outlasts_every_attempt_to_load(deployment, settings):
    configured = _settings(settings)
    probe = _container(deployment)["startupProbe"]
    patience = probe["periodSeconds"] * probe["failureThreshold"]
    assert patience > configured.load_budget_seconds * configured.load_attempts


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_liveness_waits_longer_than_the_service_needs_to_heal_itself(deployment, settings):
    configured = _settings(settings)
    probe = _container(deployment)["livenessProbe"]
    patience = probe["periodSeconds"] * probe["failureThreshold"]
    assert patience > configured.progress_budget_seconds + configured.terminate_grace_seconds + 2


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_the_grace_period_holds_a_whole_drain(deployment, settings):
    pod = deployment["spec"]["template"]["spec"]
    sleep = _container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = _settings(settings).drain_seconds
    assert pod["terminationGracePeriodSeconds"] > sleep + drain + END_OF_WORKERS_SECONDS


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_workers_reach_their_limit_before_the_container_does(deployment, settings):
    configured = _settings(settings)
    limit = _bytes(_container(deployment)["resources"]["limits"]["memory"])
    front = 384 * 2**20
    assert limit >= len(configured.models) * configured.memory_limit_bytes + front


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_containers_have_no_rights_that_they_do_not_need(deployment, settings):
    pod = deployment["spec"]["template"]["spec"]
    container = _container(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    state = container["args"][container["args"].index("--state-dir") + 1]
    assert writable == {state, "/tmp"}


@pytest.mark.parametrize(("deployment", "settings"), VARIANTS)
def test_variables_name_settings(deployment, settings):
    for variable in _container(deployment)["env"]:
        package, _, name = variable["name"].removeprefix("GALEN_").lower().partition("__")
        assert package == "inference"
        assert name in InferenceSettings.model_fields


def test_the_secret_is_the_one_that_is_asked_for():
    secret = _load(KUBERNETES / "secret.example.yaml")
    reference = _container(BASE)["env"][0]["valueFrom"]["secretKeyRef"]
    assert secret["metadata"]["name"] == reference["name"]
    assert list(secret["stringData"]) == [reference["key"]]
    assert "secret.example.yaml" not in (KUBERNETES / "base" / "kustomization.yaml").read_text()


def _unit():
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#["]
    return {name: value for name, _, value in pairs}


def test_the_unit_gives_time_to_drain_and_leaves_workers_to_the_service():
    unit = _unit()
    defaults = InferenceSettings()
    assert float(unit["TimeoutStopSec"]) > defaults.drain_seconds + END_OF_WORKERS_SECONDS
    assert unit["KillMode"] == "mixed"
    assert unit["OOMPolicy"] == "continue"
    assert _bytes(unit["MemoryMax"] + "i") > len(defaults.models) * defaults.memory_limit_bytes
    assert int(unit["LimitNOFILE"]) > defaults.max_connections


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path):
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    assert "/opt/galen/bin/galen" in text
    unit.write_text(text.replace("/opt/galen/bin/galen", sys.executable), encoding="utf-8")
    for command in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_copies_what_it_ignores_not_and_runs_as_nobody_special():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    root = DEPLOY.parent
    copied = {
        name
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in kept if line.startswith("!")}
    assert all((root / name).exists() for name in copied)
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    user = re.search(r"^ARG USER_ID=(\d+)$", text, re.MULTILINE).group(1)
    assert int(user) == BASE["spec"]["template"]["spec"]["securityContext"]["runAsUser"] > 0
    assert re.search(r"^USER \$\{USER_ID\}", text, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", text, re.MULTILINE)
    assert not re.search(r"FROM \S+:latest", text)
