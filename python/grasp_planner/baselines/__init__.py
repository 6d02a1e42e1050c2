"""The planners to beat, each with its best settings: sampling, gradients, latent collocation."""

from grasp_planner.baselines.cem import CEMConfig, CEMPlanner
from grasp_planner.baselines.gradient import GradientConfig, GradientPlanner
from grasp_planner.baselines.icem import ICEMConfig, ICEMPlanner
from grasp_planner.baselines.latco import LatCoConfig, LatCoPlanner
from grasp_planner.baselines.mppi import MPPIConfig, MPPIPlanner

__all__ = [
    "CEMConfig",
    "CEMPlanner",
    "GradientConfig",
    "GradientPlanner",
    "ICEMConfig",
    "ICEMPlanner",
    "LatCoConfig",
    "LatCoPlanner",
    "MPPIConfig",
    "MPPIPlanner",
]
