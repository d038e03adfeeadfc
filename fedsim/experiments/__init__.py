"""What a person starts: command line, recipes' common parts, comparisons, tuning, estimates, exports."""

from fedsim.experiments.recipes import Experiment as Experiment
from fedsim.experiments.recipes import chosen as chosen
from fedsim.experiments.recipes import run as run
from fedsim.experiments.recipes import run_experiment as run_experiment
from fedsim.experiments.tuning import changed as changed
