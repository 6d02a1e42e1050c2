"""`grasp eval`: planners by name, on the same problems, one problem at a time, in the open.

units        what is asked, what one plan gave, and the file that outlives a kill
worker       one plan: timed, executed in the environment, judged on the way
pool         worker processes, and who plans what
statistics   intervals
summary      a row per task, horizon and planner; the best baseline beside our planner
figures      pictures, as PNG
page         one HTML page
results      docs/results.md
"""
