"""`python -m grasp_planner.cli`, the same as `grasp`."""

from grasp_planner.cli import entry_point

entry_point()
