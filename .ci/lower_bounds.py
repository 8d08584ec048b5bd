"""Print pip constraints that pin every dependency of the tests to the lower bound that pyproject.toml states."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["report"], *extras["examples"], *extras["tests"]]:
    bound = re.fullmatch(r"([A-Za-z0-9-]+)>=([0-9.]+)", requirement)
    if bound is None and not requirement.startswith("adamx["):
        raise SystemExit(f"no lower bound in {requirement!r}; write name>=version")
    if bound:
        print("==".join(bound.groups()))
