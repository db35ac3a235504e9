"""Sweeps: many runs of one command. Nothing here imports torch.

jobs.py        a job: its configuration, its folder, and its state on disk
expand.py      from overrides to jobs, and the list of jobs that `smope collect` reads
job_runner.py  what a launcher calls for each job, in any process
process.py     one run in a process of its own, so that a crash stops nothing else
server.py      what these processes import before the first run
driver.py      the sweep from its first line to its last
"""
