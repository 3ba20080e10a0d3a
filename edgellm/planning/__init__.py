"""Planning: which hosts run which layers. Pure functions: no I/O, no clock, no randomness.

* `plan`: `make_plan`, from a request and the candidates to the best plan; what it calls, in this order:
* `eligible`: which candidates may serve at all, in groups that may share a cluster
* `shapes`: the TP x PP shapes that the model and the hosts allow
* `seats`: a host as one pipeline stage: its devices, memory and speed
* `fit`: how much memory a pipeline stage needs
* `layers`: hosts in pipeline order, and the layers split over them
* `predict`: how fast it would run
* `disaggregate`: `plan_disaggregated`, prefill on some hosts and decode on others, and whether that pays
* `refusal`: why there is no plan, in a `PlanError` with exact numbers
* `explain`: `describe`, a plan in words

Imports `edgellm.types`, `edgellm.errors` and the standard library, nothing else of the product.
"""

from edgellm.planning.explain import describe
from edgellm.planning.plan import make_plan

__all__ = ["describe", "make_plan"]
