"""`edgellm doctor`: each thing that must be true on this machine, and for each that is not the command that mends it.

* `check`: what a check finds (`Check`), and what it is asked about (`Examination`)
* `system`: the border: all that a check may ask of this machine (`System`), and the real one (`LocalSystem`)
* `sandbox`, `fences`, `engines`, `network`, `machine`: the checks, by subject; each a function from a `System` to `Check`s
* `reached`: runs a peer for a moment, to learn which way others reach this machine
* `cell_trial`: program that runs inside a sandbox and tries a cell's network for real
* `fence_trial`: program that enters a cell's fences in a sandbox and tries whether they hold
* `doctor`: runs them all (`run_doctor`) and draws the verdict (`exit_code`)
* `report`: shows them

A check decides and never acts but through `System`. Nothing on the machine is changed, save that
EdgeLLM's own directories are made.
"""
