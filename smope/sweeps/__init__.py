"""Many runs of one command: which there are, which are still to be done, how each is run and
watched. No torch.

jobs.py      a job of a sweep: its configuration, its place, and what became of it before
plan.py      from overrides to jobs; the list of them that a sweep leaves for `smope collect`
task.py      what a launcher calls for each job, in whatever process
process.py   one run in a process of its own: killed, out of memory or stopped, it takes nothing
             else with it
server.py    what these processes find imported
driver.py    the sweep from its first line to its last
"""
