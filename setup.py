"""Copies what the workflow reads into the wheel: settings, schema, prompts and page templates.

A checkout has these files at its top, where users look for them (nullbooth/inputs/shipped.py finds both).
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShippedFiles(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ("config", "workflow/report"):
                target = Path(self.build_lib, "nullbooth", "shipped", folder)
                shutil.copytree(Path(__file__).parent / folder, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShippedFiles})
