"""Measuring what a run costs. Importing this probes no device and needs no NVML."""

from grasp_planner.profiling.gpu_report import (
    DeviceFailure,
    DeviceReport,
    QueryFailures,
    Reading,
    SamplerReport,
)
from grasp_planner.profiling.nvml import GpuSampler

__all__ = [
    "DeviceFailure",
    "DeviceReport",
    "GpuSampler",
    "QueryFailures",
    "Reading",
    "SamplerReport",
]
