"""What a run writes down of the machine, and what that may cost."""

import importlib.metadata
import subprocess
import sys

from kiln.jobs.training.save import environment


def test_the_environment_names_what_the_numbers_depend_on():
    versions = environment()["versions"]
    assert versions["python"] == sys.version.split()[0]
    assert versions["timm"] == importlib.metadata.version("timm")
    assert {"kiln", "torch", "numpy", "pillow"} <= versions.keys()


def test_training_imports_no_model_family_before_it_is_asked_for():
    """timm and torchvision bring torch's compiler with them: more seconds than all the rest together."""
    code = "import sys, kiln.jobs.train, kiln.models.small_cnn; print({'timm', 'torchvision', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
