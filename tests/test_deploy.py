"""The files of deploy/, as far as they can be checked without a cluster."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
import typer.main
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.scripts.scripts import cli as ray_cli

from farm import config
from farm.cli import app
from farm.config import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SECRET = re.compile(r"FARM_DATABASE|FARM_STORE|AWS_|PG")


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in manifests() if one["kind"] == kind]


def pods() -> dict[str, dict[str, Any]]:
    """The template of each kind of pod, by what its component is called."""
    (cluster,) = of_kind("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    templates = [group["template"] for group in groups]
    templates += [one["spec"]["template"] for kind in ("StatefulSet", "Deployment") for one in of_kind(kind)]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in templates}


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, pod in pods().items():
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield f"{name}/{container['name']}", container, pod["spec"]


def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def words(text: str) -> list[str]:
    return shlex.split(text.replace("\\\n", " "), comments=True)


def ray_starts() -> list[list[str]]:
    """The words after each `ray start` of either file."""
    cluster = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    lines = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    lines += [text for _, container, _ in containers() for text in container.get("command", ()) if "ray start" in text]
    starts = [
        line.replace("\\\n", " ").partition("ray start ")[2].splitlines()[0] for line in lines if "ray start" in line
    ]
    return [shlex.split(start) for start in starts]


def test_ray_takes_the_cluster_file() -> None:
    given = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    full = prepare_config(given)
    validate_config(full)
    assert full["available_node_types"]["local.cluster.node"]["max_workers"] == len(given["provider"]["worker_ips"])
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(full | {"min_worker": 2})


def comes(full: dict[str, Any], asked: dict[str, float], **label: str) -> dict[str, int]:
    """The nodes that Ray's own scheduler starts for a gang of one such rank, where there are none."""
    types = AutoscalingConfig(configs=full, skip_content_hash=True).get_node_type_configs()
    for one in types.values():
        one.min_worker_nodes = 0
    is_, is_not = map(LabelSelectorOperator.Value, ("LABEL_OPERATOR_IN", "LABEL_OPERATOR_NOT_IN"))
    selector = [
        (f"ray.io/{name.replace('_', '-')}", is_not if value.startswith("!") else is_, [value.removeprefix("!")])
        for name, value in label.items()
    ]
    rank = ResourceRequestUtil.make(asked, label_selectors=[selector])
    request = SchedulingRequest(
        node_type_configs=types,
        max_num_nodes=1 + full["max_workers"],
        gang_resource_requests=[GangResourceRequest(requests=[rank])],
        disable_launch_config_check=True,
    )
    found = ResourceDemandScheduler(MagicMock()).schedule(request)
    assert bool(found.to_launch) != bool(found.infeasible_gang_resource_requests)
    return {one.instance_type: one.count for one in found.to_launch}


def test_ray_starts_a_pod_for_a_gang_that_asks_for_the_labels_of_the_group() -> None:
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2", "the other one knows no labels"
    cluster["metadata"]["namespace"] = "farm"
    full = _derive_autoscaling_config_from_ray_cr(cluster)
    rank = {"CPU": 1.0, "GPU": 1.0}
    (label,) = full["available_node_types"]["gpu"]["labels"].values()
    assert comes(full, rank, accelerator_type=label) == {"gpu": 1}
    assert comes(full, rank) == comes(full, rank, node_id="!aa") == {"gpu": 1}
    assert comes(full, rank, accelerator_type="another") == comes(full, {"CPU": 1.0, "GPU": 2.0}) == {}
    del cluster["spec"]["workerGroupSpecs"][0]["labels"]
    bare = _derive_autoscaling_config_from_ray_cr(cluster)
    assert comes(bare, rank, accelerator_type=label) == {}


def test_waiting_work_starts_no_machine_of_a_cluster_of_standing_ones() -> None:
    given = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    assert given["min_workers"] == given["max_workers"] == len(given["provider"]["worker_ips"])
    assert comes(prepare_config(given) | {"auth": {}}, {"CPU": 1.0}) == {}, "or say in the README that it does"


def test_every_option_of_ray_is_one() -> None:
    known = {option for parameter in ray_cli.commands["start"].params for option in parameter.opts}
    starts = ray_starts()
    assert len(starts) == 3
    (cluster,) = of_kind("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    given = [f"--{name}" for group in groups for name in group["rayStartParams"]]
    given += [word.partition("=")[0] for start in starts for word in start]
    assert set(given) <= known
    commands = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    for command in (*commands["head_start_ray_commands"], *commands["worker_start_ray_commands"]):
        assert "ray stop" in command or "RAY_AUTH_MODE=token" in command


def test_ray_is_the_pinned_one_and_asks_for_the_token() -> None:
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "farm-ray"}
    (dispatch,) = [one for name, one, _ in containers() if name == "dispatch/dispatch"]
    environment = {one["name"]: one for one in dispatch["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "farm-ray", "key": "auth_token"}


def test_every_process_is_of_the_image_and_every_command_is_the_farm_s() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    started = set()
    for name, container, _ in containers():
        assert container["image"] == f"renderfarm:{VERSION}", name
        command = container.get("command", [])
        line = words(command[-1]) if command[:2] == ["sh", "-c"] else command
        started |= {after for word, after in pairwise(line) if word == "farm"}
    assert started == {"api", "dispatch", "signer"} <= known.keys()


def test_every_setting_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"FARM_{name.upper()}" for name in Settings.model_fields} | {"FARM_CONFIG"}
    named = {one["name"] for _, container, _ in containers() for one in container.get("env", ())}
    assert {name for name in named if name.startswith("FARM_")} <= known
    (settings,) = of_kind("ConfigMap")
    (tmp_path / "farm.toml").write_text(settings["data"]["farm.toml"])
    monkeypatch.setenv("FARM_CONFIG", str(tmp_path / "farm.toml"))
    loaded = config.load()
    (cluster,) = of_kind("RayCluster")
    assert loaded.ray_address == f"{cluster['metadata']['name']}-head-svc:6379"
    (gpus,) = cluster["spec"]["workerGroupSpecs"]
    assert [pool.max * pool.ranks for pool in loaded.pools] == [gpus["maxReplicas"]]


def test_volumes_are_there_and_the_keys_are_the_signer_s_alone() -> None:
    claimed = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
    for name, container, pod in containers():
        volumes = {one["name"]: one for one in pod.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            volume = volumes.get(mount["name"], {})
            assert volume or mount["name"] == "keys", f"{name} mounts {mount['name']}"
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claimed
            if mount["name"] == "keys" and name not in {"dispatch/signer", "dispatch/folders"}:
                assert (name, mount["subPath"], mount["readOnly"]) == ("dispatch/dispatch", "trust", True)
    spec = pods()["dispatch"]["spec"]
    assert "shareProcessNamespace" not in spec
    assert (
        spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    )  # the signer refuses keys a group may read


def test_ray_s_nodes_get_no_login() -> None:
    for name, container, _ in containers():
        if name.startswith(("head/", "gpu/")):
            assert "envFrom" not in container
            assert not [one for one in container["env"] if SECRET.match(one["name"])]
    (dispatch,) = [one for name, one, _ in containers() if name == "dispatch/dispatch"]
    script = words(dispatch["command"][-1])
    dropped = {after for word, after in pairwise(script) if word == "-u"}
    assert {one["name"] for one in dispatch["env"] if SECRET.match(one["name"])} <= dropped
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= dropped


def test_nothing_but_the_api_is_reached_from_outside() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    (service,) = of_kind("Service")
    assert "type" not in service["spec"]
    assert [name for name, has in labels.items() if fits(service["spec"]["selector"], has)] == ["api"]
    assert not of_kind("Ingress")
    opened: dict[str, list[Any]] = {name: [] for name in labels}
    closed = set()
    for policy in of_kind("NetworkPolicy"):
        chosen = [name for name, has in labels.items() if fits(policy["spec"]["podSelector"]["matchLabels"], has)]
        assert chosen, policy["metadata"]["name"]
        if "Ingress" in policy["spec"]["policyTypes"]:
            closed |= set(chosen)
            for name in chosen:
                opened[name] += policy["spec"].get("ingress", [])
    assert closed == labels.keys()
    assert [name for name, rules in opened.items() if any("from" not in rule for rule in rules)] == ["api"]


def test_selectors_choose_their_own_pods_and_none_runs_as_root() -> None:
    for kind in ("StatefulSet", "Deployment"):
        for one in of_kind(kind):
            assert fits(one["spec"]["selector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"])
    for name, pod in pods().items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()


def test_every_secret_is_in_the_readme() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for _, container, _ in containers():
        for one in container.get("env", ()):
            if "valueFrom" in one:
                reference = one["valueFrom"]["secretKeyRef"]
                assert re.search(rf"generic {reference['name']} .*?{reference['key']}=", readme, re.S), reference
        for one in container.get("envFrom", ()):
            assert f"generic {one['secretRef']['name']} " in readme


def test_the_image_has_every_package_and_the_pins() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert wanted <= copied
    assert all((ROOT / name).exists() for name in copied)
    let_in = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(let_in)
    assert all("--constraint constraints.txt" in line for line in lines if "pip install" in line)
