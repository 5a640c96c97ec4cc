"""The W&B sweep gives Hydra what it understands; the dashboard groups runs by setting."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import open_dict

from opir_lightning.config import check_keys, config_dir, register_schemas

SWEEPS = Path(__file__).resolve().parents[1] / "experiments" / "sweeps"
register_schemas()


@pytest.fixture
def configured():
    """Compose as the command line does, with Hydra's own node, which the names of runs are made from."""

    def configured(*overrides: str):
        with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
            config = compose("train", [*overrides, "run_dir=."], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return check_keys(config)

    yield configured
    HydraConfig.instance().cfg = None


def test_a_sweep_calls_the_training_with_overrides_that_are_settings(configured):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load((SWEEPS / "ablation.yaml").read_text())
    command = sweep["command"]
    assert command[1:4] == ["python", "-m", "${program}"]
    assert sweep["program"] == "opir_lightning.train"
    fixed = [word for word in command[4:] if not word.startswith(("${", "hydra.run.dir="))]
    columns = [parameter["values"] for parameter in sweep["parameters"].values()]
    for values in zip(*columns, strict=True):
        chosen = {key: {"value": value} for key, value in zip(sweep["parameters"], values, strict=True)}
        plain = configured(*fixed, *create_sweep_command_args({"args": chosen})["args_no_hyphens"])
        net = instantiate(plain["model"], _convert_="all")
        assert (net.settings["task_parameters"], net.settings["uncertainty"], plain["seed"]) == values
        group = plain["logger"]["wandb"]["group"]
        assert f"model.uncertainty={values[1]}" in group
        assert "seed" not in group
        assert plain["logger"]["wandb"]["name"] == f"{group}-seed{values[2]}"


def test_a_group_is_the_experiment_and_what_changes_the_training(configured):
    def group(*overrides: str) -> str:
        return configured("experiment=rain", "logger=wandb", *overrides)["logger"]["wandb"]["group"]

    assert group("seed=4", "logger.wandb.offline=true", "trainer=cpu", "callbacks.panels=null") == "rain"
    assert group("trainer.max_steps=7", "seed=1", "model.offset=false", "callbacks.ema.decay=0.9") == (
        "rain callbacks.ema.decay=0.9 model.offset=false trainer.max_steps=7"
    )
    long = [f"+degradations.a{number:03d}={{}}" for number in range(30)]
    assert len(group(*long)) <= 120
    assert group(*long) != group(*long[:-1])


def run(group: str, best: float, gain: float, error: float = 0.02):
    summary = {
        "val/psnr": {"max": best, "last": best - 3},
        "val_task/noise/gain": {"max": gain, "last": 0.0},
        "val/calibration_error": {"min": error, "last": 1.0},
        "val/undamaged/psnr_input": {"max": "Infinity", "last": "Infinity"},
    }
    return SimpleNamespace(group=group, name=f"{group}-seed0", summary_metrics=summary)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces.*")
def test_the_dashboard_is_built_from_groups_of_runs(monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="needs the extra 'dashboard'")
    spec = importlib.util.spec_from_file_location("dashboard", SWEEPS / "dashboard.py")
    dashboard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dashboard)
    stopped = SimpleNamespace(group="a", name="a-seed3", summary_metrics={})
    groups = dashboard.grouped([run("a", 20.0, 1.0), run("a", 22.0, 3.0, 0.04), stopped, run("b", 25.0, 4.0)])
    assert [(group.name, group.runs) for group in groups] == [("b", 1), ("a", 2)]
    assert dashboard.table(groups).splitlines()[2:] == [
        "| b | 1 | 25.00 | 4.00 | 0.0200 |",
        "| a | 2 | 21.00 ± 1.41 | 2.00 ± 1.41 | 0.0300 ± 0.0141 |",
    ]
    report = dashboard.build_report("me", "mine", groups, title="Ablation", filters="Tags = 'x'")
    grids = [block for block in report.blocks if isinstance(block, dashboard.reports.PanelGrid)]
    assert {runset.groupby[0] for grid in grids for runset in grid.runsets} == {"group"}
    assert any(dashboard.table(groups) == getattr(block, "text", None) for block in report.blocks)
    shown = [panel for grid in grids for panel in grid.panels]
    assert {key for panel in shown for key in getattr(panel, "media_keys", [])} == {
        f"pictures/{name}" for name in ("operators", "pictures", "confusion", "calibration")
    }
    assert ["val_task/noise/gain"] in [getattr(panel, "y", None) for panel in shown]
    # As it would be sent: the grouping and the filter survive the translation.
    view = dashboard.build_workspace("me", "mine", groups, title="Ablation", filters="Tags = 'x'")._to_model()
    (runs,) = view.spec.section.run_sets
    assert [key.name for key in runs.grouping] == ["group"]
    assert "'x'" in str(runs.filters)
