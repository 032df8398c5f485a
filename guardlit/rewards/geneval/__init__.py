"""GenEval: prompts, detector and rules of the benchmark. Imports errors, types, the modules of rewards, clip."""

from guardlit.rewards.geneval.rules import task_means as task_means
from guardlit.rewards.geneval.scorer import GenEval as GenEval
