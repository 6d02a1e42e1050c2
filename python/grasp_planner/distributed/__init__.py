"""Planning with more than one process, device or machine, on `torch.distributed` as it is."""

from grasp_planner.distributed.launch import RankLostError, Ranks, ranks
from grasp_planner.distributed.sharded import Sharded

__all__ = ["RankLostError", "Ranks", "Sharded", "ranks"]
