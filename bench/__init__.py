"""What `grasp bench` runs: cases, the gate before every number, timing, ceilings, the report.

This folder is installed as the package `grasp_bench`; its modules therefore import one another
relatively. The scripts `step.py`, `plan.py` and `planner.py` run by themselves (`make bench-step`).

    cases.py        the registry: one line per case
    lifted.py       the lifted ops and the actions' step: operands, the public call, plain torch
    mlp.py          the same for world models inside the kernel
    variants.py     which backends run a case here, and which do not, and why
    gate.py         a result against the float64 reference, before it is timed
    ceilings.py     copy, triad, matrix product and the latency of a call, measured in the same run
    timing.py       turns, quartiles, cold caches; gpu.py the same with CUDA events
    runner.py       a case becomes rows of numbers
    scaling.py      time and memory over N, T and D: exponents, and where the cache ends
    report.py       terminal, JSON, CSV; page.py and plots.py the HTML page
    compare.py      what got slower between two reports
    peers.py        planners of other projects on the same world model, where installed
"""
