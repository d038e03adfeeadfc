"""What a person starts: command line, recipes' common parts, comparisons, tuning, estimates, exports."""

from fedsim.experiments.recipes import ImageExperiment as ImageExperiment
from fedsim.experiments.recipes import InstructionExperiment as InstructionExperiment
from fedsim.experiments.recipes import TextExperiment as TextExperiment
from fedsim.experiments.recipes import run as run
from fedsim.experiments.recipes import run_image_experiment as run_image_experiment
from fedsim.experiments.recipes import run_instruction_experiment as run_instruction_experiment
from fedsim.experiments.recipes import run_text_experiment as run_text_experiment
