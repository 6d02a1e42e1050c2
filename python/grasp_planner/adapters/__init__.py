"""Other people's world models and planner interfaces, one file each; none is imported unless asked.

from grasp_planner.adapters import dino_wm  # for example
"""
