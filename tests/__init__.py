"""All tests. Bytecode is kept, whatever the environment says."""

import os
import sys

# Many containers forbid it: each process would then compile the runner anew, and pytest all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
